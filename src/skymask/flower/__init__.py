"""SkyMask in a Flower federation: `pip install skymask[flower]`.

`SkyMask(FedAvg(...), model=..., ...)` wraps any strategy of `flwr.serverapp.strategy`.
"""

try:
    import flwr as _flwr
except ImportError as error:
    raise ImportError("skymask.flower needs Flower: pip install 'skymask[flower]'") from error

from skymask.flower.ledger import Ledger
from skymask.flower.patience import TooFewNodes
from skymask.flower.policy import Policy, Standing
from skymask.flower.strategy import RobustStrategy, SkyMask

__all__ = ["Ledger", "Policy", "RobustStrategy", "SkyMask", "Standing", "TooFewNodes"]

del _flwr
