"""ByzFL's rules on hostile updates, for `benchmarks.reliability.hostile`: a process of its own.

Started by the interpreter of an environment that has ByzFL, with files of updates (.npz, an array a
client). Prints one line of JSON: for each file how many rules ended how. Needs nothing of SkyMask.
"""

import importlib
import json
import signal
import sys
import warnings
from collections import Counter
from typing import Any
from unittest.mock import MagicMock

import numpy as np

F = 3
"""Clients that may be malicious, as many as are in the inputs where not all are."""


SECONDS = 10
"""What one rule may take."""


def rules(library: Any, n: int) -> dict[str, Any]:
    """Its rules with settings that fit n clients, where any do."""
    f = min(F, max((n - 1) // 4, 0))
    return {
        "Average": library.Average(),
        "Median": library.Median(),
        "TrMean": library.TrMean(f),
        "Krum": library.Krum(f),
        "MultiKrum": library.MultiKrum(f),
        "GeometricMedian": library.GeometricMedian(),
        "CenteredClipping": library.CenteredClipping(),
        "MDA": library.MDA(f if n <= 20 else 0),
        "MoNNA": library.MoNNA(f),
        "Meamed": library.Meamed(f),
        "CAF": library.CAF(f),
    }


def too_slow(*_: object) -> None:
    """What happens when the alarm rings."""
    raise TimeoutError


def main() -> None:
    """Give each file's updates to each rule."""
    for name in ("torchvision", "matplotlib", "matplotlib.pyplot", "seaborn"):
        sys.modules.setdefault(name, MagicMock())  # imported by its training part alone
    library = importlib.import_module("byzfl")
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, too_slow)
    answers = []
    for path in sys.argv[1:]:
        with np.load(path) as stored:
            rows = [stored[name] for name in stored.files]
        counts: Counter[str] = Counter()
        for rule in rules(library, len(rows)).values():
            signal.alarm(SECONDS)
            try:
                finite = bool(np.isfinite(np.asarray(rule(np.array(rows)), dtype=float)).all())
                counts["finite" if finite else "non-finite"] += 1
            except TimeoutError:
                counts["slow"] += 1
            except Exception:
                counts["errors"] += 1
            finally:
                signal.alarm(0)
        answers.append({name: counts[name] for name in ("finite", "non-finite", "errors", "slow")})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
