"""The client: plain Flower and PyTorch, and a drill for trying what the server does about it."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from guarded import drill
from guarded.task import build_model, node_data, train
from skymask.randomness import generator

app = ClientApp(mods=[drill.sign_flip])


@app.train()
def train_here(message: Message, context: Context) -> Message:
    """Train the global model on this node's samples."""
    config = context.run_config
    node = int(context.node_config["partition-id"])
    samples = node_data(config, node, int(context.node_config["num-partitions"]))
    samples = drill.label_flip(samples, context)
    model = build_model(config)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    index = int(message.content["config"]["server-round"])
    loss = train(model, samples, config, generator(config["seed"], "client", node, index))
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(samples.labels)})
    reply = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(reply, reply_to=message)
