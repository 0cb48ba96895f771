"""Turns some nodes against the server, to see what it does about them. No part of a real client.

The first `malicious` nodes attack in the way that `attack` says, both of the run configuration.
"""

from flwr.app import Array, Context, Message
from flwr.clientapp.typing import ClientAppCallable

from skymask.types import Batch

KINDS = ("sign-flip", "label-flip")


def attacks(context: Context, kind: str) -> bool:
    """Whether this node is to attack in this way."""
    config = context.run_config
    if config["attack"] not in KINDS:
        raise ValueError(f"attack is {config['attack']!r} but must be one of {', '.join(KINDS)}")
    malicious = int(context.node_config["partition-id"]) < int(config["malicious"])
    return malicious and config["attack"] == kind


def label_flip(samples: Batch, context: Context) -> Batch:
    """The samples; a malicious node takes label 9 - y for y."""
    if not attacks(context, "label-flip"):
        return samples
    return Batch(samples.inputs, 9 - samples.labels)


def sign_flip(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A Flower mod: a malicious node sends the opposite of its update."""
    reply = call_next(message, context)
    if attacks(context, "sign-flip"):
        before, after = message.content["arrays"], reply.content["arrays"]
        for key, array in after.items():
            after[key] = Array(2 * before[key].numpy() - array.numpy())
    return reply
