"""SkyMask on several processes, for models whose updates do not fit on one GPU, or to be faster.

    torchrun --standalone --nproc-per-node 2 examples/shared_columns.py

Each process holds its columns of the updates and of the masks. The first one plays the network: it
has the clients' updates and hands out their columns one client after another. Eight clients learn
handwritten digits, two of whom send the opposite of what they learn. Runs on as many GPUs, or
without any on the CPU.
"""

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import skymask as sm

CLIENTS, MALICIOUS, ROUNDS = 8, (1, 4), 20
LOCAL = sm.LocalSGD(steps=5, batch=32, lr=0.2)


def client_update(model: nn.Module, x: Tensor, y: Tensor, sign: float) -> Tensor:
    """What a client sends: its gradient step, times `sign`, as one (d,) vector."""
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    return -sign * torch.cat([each.flatten() for each in gradients])


def main() -> None:
    """Train, and tell who was left out."""
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)

    inputs, labels = load_digits(return_X_y=True)
    x = torch.tensor(inputs / 16, dtype=torch.float32, device=device)
    y = torch.tensor(labels, device=device)
    root, parts = (x[:100], y[:100]), torch.arange(100, len(y)).chunk(CLIENTS)
    torch.manual_seed(0)  # noqa: TID251 -- the same model in each process
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).to(device)

    shard = sm.shard(sum(p.numel() for p in model.parameters()))
    defence, memory = sm.SkyMask(), None
    for t in range(ROUNDS):
        updates = torch.empty(CLIENTS, shard.at.stop - shard.at.start, device=device)
        for i, part in enumerate(parts):
            sent = None
            if shard.rank == 0:
                sent = client_update(model, x[part], y[part], -3.0 if i in MALICIOUS else 1.0)
            shard.scatter(sent, into=updates[i])
        round = sm.server_round(
            model, F.cross_entropy, root, LOCAL, index=t, memory=memory, shard=shard
        )
        decision = defence(updates, round)  # of this process's columns; who is out is the same
        memory = decision.memory
        sm.assign(model, sm.flatten(model) + shard.whole(decision.update))
    if shard.rank == 0:
        out = (~decision.accepted).nonzero().flatten().tolist()
        accuracy = float((model(x[100:]).argmax(1) == y[100:]).float().mean())
        print(f"{shard.ranks} processes; left out in the last round: {out}")
        print(f"accuracy {accuracy:.1%}")
    dist.barrier()  # nobody leaves while another one still waits for it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
