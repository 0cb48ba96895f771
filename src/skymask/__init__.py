"""SkyMask: attack-agnostic protection of federated learning by learnable masks."""

from skymask.attacks import FangTrim, LabelFlip, MinSum, NoAttack
from skymask.clients import LocalSGD
from skymask.data import BySubject, Dirichlet, Groups, SizeSkew
from skymask.defences import FedAvg, Median, SkyMask, SkyMaskNR
from skymask.errors import InputError
from skymask.experiment import Experiment
from skymask.flat import assign, flatten, flatten_buffers
from skymask.server import server_round
from skymask.simulation import Result, simulate
from skymask.types import Attack, Batch, ClientData, Dataset, Decision, Defence, Round

__all__ = [
    "Attack",
    "Batch",
    "BySubject",
    "ClientData",
    "Dataset",
    "Decision",
    "Defence",
    "Dirichlet",
    "Experiment",
    "FangTrim",
    "FedAvg",
    "Groups",
    "InputError",
    "LabelFlip",
    "LocalSGD",
    "Median",
    "MinSum",
    "NoAttack",
    "Result",
    "Round",
    "SizeSkew",
    "SkyMask",
    "SkyMaskNR",
    "assign",
    "flatten",
    "flatten_buffers",
    "server_round",
    "simulate",
]
