"""What is known of clients, made by hand."""

import torch

from skymask.defences.known import Known
from skymask.randomness import generator

SAMPLES = 100
ERROR = 0.05


def known(
    alignment=None,
    descent=None,
    length=None,
    raised=None,
    shares=None,
    clients: int = 10,
    rounds: int = 30,
    late: int = 0,
    noise: float = 0.2,
) -> Known:
    """What is known of `clients` that did the same in every one of `rounds` rounds.

    The numbers given are of the first clients; the others are honest: alignment 0.2, descent 0.3
    give or take, length 1. What they raise is as aligned as all that they change, unless said;
    `shares` are of one layer called "head", beside the median client's, where there are any. In the
    `late` rounds at the end the first client has alignment -0.5.
    """
    draw = generator("judged")
    past, ids = {}, torch.arange(clients)
    for index in range(rounds):
        varied = noise * torch.randn(clients + 1, generator=draw, dtype=torch.float64)
        seen = {
            "length": filled(clients, 1.0, length).log(),
            "alignment": filled(clients, 0.2, alignment),
            "error": torch.full((clients + 1,), ERROR, dtype=torch.float64),
            "descent": filled(clients, 0.3, descent) + varied,
        }
        if index >= rounds - late:
            seen["alignment"][0] = -0.5
        alike = raised is None
        seen["raised"] = seen["alignment"].clone() if alike else filled(clients, 0.2, raised)
        seen["raised_error"] = seen["error"]
        seen["square"] = seen["descent"].square()
        parts = {} if shares is None else {"head": filled(clients, 1.0, shares)[:-1].log()}
        found = Known.of(past, ids, seen, parts, 0.9, SAMPLES)
        past = found.stored()
    return found


def filled(clients: int, usual: float, first) -> torch.Tensor:
    values = torch.full((clients + 1,), usual, dtype=torch.float64)
    if first is not None:
        values[: len(first)] = torch.tensor(first, dtype=torch.float64)
    return values
