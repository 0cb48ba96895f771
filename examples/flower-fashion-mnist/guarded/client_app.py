"""The client: plain Flower and PyTorch, and drills for trying what the server does about them."""

from logging import getLogger

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from guarded.task import build_model, node_data, train
from skymask.flower import drills
from skymask.randomness import generator
from skymask.types import Batch

log = getLogger("flwr")


def drilled(attack: str) -> drills.On:
    """The nodes that are to attack in this way, by the run configuration; none in a real run."""

    def on(context: Context) -> bool:
        config, node = context.run_config, int(context.node_config["partition-id"])
        return config["attack"] == attack and node < int(config["malicious"])

    return on


app = ClientApp(mods=[drills.sign_flip(on=drilled("sign-flip"))])


@app.train()
def train_here(message: Message, context: Context) -> Message:
    """Train the global model on this node's samples."""
    config = context.run_config
    node = int(context.node_config["partition-id"])
    samples = node_data(config, node, int(context.node_config["num-partitions"]))
    if drilled("label-flip")(context):
        log.warning("skymask drill on node %s: label flip", context.node_id)
        samples = Batch(samples.inputs, drills.flip_labels(samples.labels, classes=10))
    model = build_model(config)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    index = int(message.content["config"]["server-round"])
    loss = train(model, samples, config, generator(config["seed"], "client", node, index))
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(samples.labels)})
    reply = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(reply, reply_to=message)
