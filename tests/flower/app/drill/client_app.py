"""The client: trains on the .npz file that its node's configuration names.

It imports torch and nothing else that is slow: Flower starts a process for every message.
"""

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

STEPS, BATCH, RATE = 10, 32, 0.1


def attack(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """On a node with `drill=true`: send the opposite of the update."""
    if not context.node_config.get("drill", False):
        return call_next(message, context)
    from skymask.flower import drills  # slow, and only needed here

    return drills.sign_flip(on=drills.configured())(message, context, call_next)


app = ClientApp(mods=[attack])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Some steps of SGD from the global model."""
    with np.load(context.node_config["data"]) as held:
        inputs, labels = torch.from_numpy(held["inputs"]), torch.from_numpy(held["labels"])
    state = message.content["arrays"].to_torch_state_dict()
    weights = {key: tensor.clone().requires_grad_() for key, tensor in state.items()}
    random = torch.Generator().manual_seed(message.content["config"]["server-round"])
    for _ in range(STEPS):
        rows = torch.randint(len(labels), (BATCH,), generator=random)
        hidden = F.relu(F.linear(inputs[rows].flatten(1), weights["1.weight"], weights["1.bias"]))
        loss = F.cross_entropy(
            F.linear(hidden, weights["3.weight"], weights["3.bias"]), labels[rows]
        )
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for weight, gradient in zip(weights.values(), gradients, strict=True):
                weight -= RATE * gradient
    trained = ArrayRecord({key: Array(weight.detach().numpy()) for key, weight in weights.items()})
    metrics = MetricRecord({"num-examples": len(labels)})
    return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)
