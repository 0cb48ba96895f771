"""SkyMask inside a training loop of your own, without the simulator.

Twelve clients hold handwritten digits; four of them train on wrong labels and send ten times what
they learn. Eight clients take part in a round. Prints the accuracy with plain averaging and with
SkyMask, and who was left out in the last round.
"""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import skymask as sm

CLIENTS, MALICIOUS, ROUNDS = 12, {0, 3, 6, 9}, 40
LOCAL = sm.LocalSGD(steps=5, batch=32, lr=0.2)  # how a client trains, and so how the server does


def client_update(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
    """What a client sends: its model after local training, minus the global one, (d,)."""
    mine = copy.deepcopy(model)
    optimiser = torch.optim.SGD(mine.parameters(), lr=LOCAL.lr)
    for _ in range(LOCAL.steps):
        rows = torch.randint(len(y), (LOCAL.batch,), generator=random)
        optimiser.zero_grad()
        F.cross_entropy(mine(x[rows]), y[rows]).backward()
        optimiser.step()
    return sm.flatten(mine) - sm.flatten(model)


def train(guarded: bool) -> float:
    """The accuracy on the test set after all rounds."""
    inputs, labels = load_digits(return_X_y=True)
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=random)
    x, y = torch.tensor(inputs / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    root, test, rest = (x[:100], y[:100]), slice(100, 500), torch.arange(500, len(y))
    parts = rest.chunk(CLIENTS)

    with torch.random.fork_rng():
        torch.manual_seed(0)  # noqa: TID251 -- your own program may
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    defence, memory = sm.SkyMask(), None
    for t in range(ROUNDS):
        chosen = torch.randperm(CLIENTS, generator=random)[:8].sort().values
        rows = []
        for i in chosen.tolist():
            wrong = i in MALICIOUS
            own = 9 - y[parts[i]] if wrong else y[parts[i]]
            rows.append(client_update(model, x[parts[i]], own, random) * (10 if wrong else 1))
        updates = torch.stack(rows)
        if guarded:
            round = sm.server_round(
                model, F.cross_entropy, root, LOCAL, index=t, clients=chosen, memory=memory
            )
            decision = defence(updates, round)
            memory = decision.memory  # what is known of each client, by its id
            step = decision.update
        else:
            step = updates.mean(0)
        sm.assign(model, sm.flatten(model) + step)
    if guarded:
        out = chosen[~decision.accepted].tolist()
        print(f"left out in the last round: {out}, of {chosen.tolist()} who took part")
    return float((model(x[test]).argmax(1) == y[test]).float().mean())


if __name__ == "__main__":
    print(f"plain averaging {train(guarded=False):.1%}")
    print(f"SkyMask         {train(guarded=True):.1%}")
