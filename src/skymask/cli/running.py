"""`skymask run` and `skymask demo`."""

import dataclasses
import json
import shlex
import shutil
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.table import Table

from skymask.attacks import MinSum, NoAttack
from skymask.cli.shared import AsJson, DataDir, Device, Out, err, out, starting_with, warn
from skymask.components import parse
from skymask.data import DATA_SETS
from skymask.defences import FedAvg, SkyMask
from skymask.errors import InputError, require, unknown
from skymask.experiment import DEFAULTS, KINDS, Experiment, from_json
from skymask.local_sgd import LocalSGD, Precision
from skymask.models import MODELS
from skymask.progress import percent, round_progress
from skymask.records import RunFolder
from skymask.simulation import Result, simulate
from skymask.tracking import tracker


def run(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help=f"One of: {', '.join(DATA_SETS)}.", autocompletion=starting_with(DATA_SETS)
        ),
    ] = None,
    attack: Annotated[
        str,
        typer.Option(
            help="Attack, as NAME or NAME:SETTING=VALUE,... (see list).",
            autocompletion=starting_with(KINDS["attack"]),
        ),
    ] = "none",
    defence: Annotated[
        str,
        typer.Option(help="Defence, likewise.", autocompletion=starting_with(KINDS["defence"])),
    ] = "skymask",
    malicious: Annotated[
        float, typer.Option(help="Share of the clients that are malicious.")
    ] = 0.2,
    honest_only: Annotated[
        bool, typer.Option("--honest-only", help="The malicious clients stay away: a yardstick.")
    ] = False,
    clients: Annotated[int | None, typer.Option(help="Number of clients.")] = None,
    participation: Annotated[
        float, typer.Option(help="Share of the clients drawn each round.")
    ] = 1.0,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds.")] = None,
    q: Annotated[
        float | None, typer.Option(help="Non-IID degree q of the paper's partition.")
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="Another partition, as NAME:SETTING=VALUE.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"One of: {', '.join(MODELS)}.", autocompletion=starting_with(MODELS)),
    ] = None,
    local_steps: Annotated[
        int | None, typer.Option(help="Mini-batch steps of a client a round, l.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples in a mini-batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Clients' learning rate, beta.")] = None,
    prox: Annotated[float, typer.Option(help="FedProx's mu; 0 is plain SGD.")] = 0.0,
    precision: Annotated[
        str, typer.Option(help="Of clients' convolutions: float32 or bfloat16, faster on a GPU.")
    ] = "float32",
    server_lr: Annotated[float, typer.Option(help="Server's rate, alpha.")] = 0.5,
    root_size: Annotated[int, typer.Option(help="Samples in the root data set.")] = 100,
    root_bias: Annotated[
        float, typer.Option(help="Share of one class in the root data set, p.")
    ] = 0.1,
    root_noise: Annotated[
        float, typer.Option(help="Share of the root data set's labels that are wrong.")
    ] = 0.0,
    eval_every: Annotated[int, typer.Option(help="Rounds between two evaluations.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 1,
    seeds: Annotated[int, typer.Option(help="Repeat with this many seeds, from --seed on.")] = 1,
    device: Device = None,
    out_folder: Out = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this folder.", metavar="FOLDER")
    ] = None,
    track: Annotated[
        str | None,
        typer.Option(
            help="Hand each round's numbers to a tracker: tensorboard:FOLDER or mlflow:URI."
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Train a federation, attacked and defended as you say.

    Without an option the data set's own settings are used (`skymask list` shows them).
    """
    if resume is not None:
        _only_with_resume(context)
        _resume(resume, data, device, data_dir, track, as_json)
        return
    if data is None:
        raise InputError(f"DATA is missing; choose one of: {', '.join(DATA_SETS)}")
    if data not in DATA_SETS:
        raise unknown("data set", data, DATA_SETS)
    if q is not None and partition is not None:
        raise InputError(
            "--q and --partition exclude each other: --q Q is short for --partition groups:q=Q"
        )
    require(seeds >= 1, "seeds", seeds, "at least 1")
    usual = DEFAULTS[data]
    text = f"groups:q={q}" if q is not None else partition
    gamma = {"gamma": usual.gamma} if defence.split(":")[0] == "skymask-paper" else {}
    experiment = Experiment(
        data=data,
        # The strongest setting for a rival is the true f, as the literature gives it.
        attack=parse(attack, KINDS, "attack", f=malicious, server_lr=server_lr),
        defence=parse(defence, KINDS, "defence", f=malicious, **gamma),
        malicious=malicious,
        honest_only=honest_only,
        clients=clients,
        participation=participation,
        partition=None if text is None else parse(text, KINDS, "partition"),
        model=model,
        local=LocalSGD(
            usual.local.steps if local_steps is None else local_steps,
            usual.local.batch if batch is None else batch,
            usual.local.lr if lr is None else lr,
            prox,
            cast(Precision, precision),  # LocalSGD says what it may be
        ),
        server_lr=server_lr,
        rounds=rounds,
        eval_every=eval_every,
        root_size=root_size,
        root_bias=root_bias,
        root_noise=root_noise,
        seed=seed,
    ).resolved()
    numbers = range(seed, seed + seeds)
    if out_folder is None or seeds == 1:
        folders = dict.fromkeys(numbers, out_folder)
    else:
        RunFolder(out_folder).require_no_run()
        folders = {number: out_folder / f"seed-{number}" for number in numbers}
    for folder in filter(None, folders.values()):
        RunFolder(folder).require_free()  # all of them, before the first run takes its time
    results = []
    for number, folder in folders.items():
        title = f"{defence} against {attack}" + (f", seed {number}" if seeds > 1 else "")
        seeded = dataclasses.replace(experiment, seed=number)
        results.append(_run(seeded, title, folder, device, data_dir, track=track))
    _show(results, out_folder, as_json)


def demo(
    out_folder: Out = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """See SkyMask at work: handwritten digits, 20 clients, 6 of them malicious (Min-Sum).

    Trains three times: without attack, attacked, attacked and protected.
    """
    base = out_folder or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    common: dict[str, Any] = {"data": "digits", "malicious": 0.3}
    cases = {
        "fedavg, no attack": Experiment(attack=NoAttack(), defence=FedAvg(), **common),
        "fedavg, min-sum": Experiment(attack=MinSum(), defence=FedAvg(), **common),
        "skymask, min-sum": Experiment(attack=MinSum(), defence=SkyMask(), **common),
    }
    results = {}
    for title, experiment in cases.items():
        folder = base / title.replace(", ", "-").replace(" ", "-")
        results[title] = (_run(experiment.resolved(), title, folder, device, None), folder)
    table = Table("", "accuracy", "FPR", "FNR", title="20 clients, 6 of them malicious")
    for title, (result, _) in results.items():
        s = result.summary
        # FedAvg judges nobody: a rate of wrong verdicts would say nothing.
        judged = title.startswith("skymask")
        rates = (percent(s["fpr"]), percent(s["fnr"])) if judged else ("-", "-")
        table.add_row(title, percent(s["accuracy"]), *rates)
    out.print(table)
    folders = [shlex.quote(str(folder)) for _, folder in results.values()]
    # Inside a virtual environment that is not activated only the path that was typed works.
    program = "skymask" if shutil.which("skymask") else sys.argv[0]
    out.print("run folders:", *folders, sep="\n  ", soft_wrap=True, highlight=False)
    out.print(
        f"look at them: {program} report {' '.join(folders)}", soft_wrap=True, highlight=False
    )
    if as_json:
        told = {
            title: r.summary | {"folder": str(folder)} for title, (r, folder) in results.items()
        }
        print(json.dumps(told))


def _run(
    experiment: Experiment,
    title: str,
    folder: Path | None,
    device: str | None,
    data_dir: Path | None,
    resume: bool = False,
    track: str | None = None,
) -> Result:
    done = 0
    if (
        resume
        and folder is not None
        and (checkpoint := RunFolder(folder).load(torch.device("cpu")))
    ):
        done = checkpoint.rounds
    name = f"{experiment.data}-seed-{experiment.seed}" if folder is None else folder.name
    try:
        with (
            nullcontext() if track is None else tracker(track, experiment, name) as told,
            round_progress(title, experiment.rounds or 0, err, done) as shown,
        ):

            def watch(record: dict[str, Any]) -> None:
                shown(record)
                if told is not None:
                    told(record)

            return simulate(
                experiment,
                device,
                folder,
                resume=resume,
                data_dir=data_dir,
                watch=watch,
                command=shlex.join(["skymask", *sys.argv[1:]]),
            )
    except KeyboardInterrupt:
        if folder is not None:
            err.print(
                f"stopped; continue with: skymask run --resume {shlex.quote(str(folder))}",
                highlight=False,
            )
        sys.exit(130)


def _only_with_resume(context: typer.Context) -> None:
    """Refuse options that a run which goes on cannot take: it goes on as it was started."""
    kept = {"data", "resume", "device", "data_dir", "track", "as_json"}
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in kept and source is not None and source.name == "COMMANDLINE":
            option = {"out_folder": "out"}.get(name, name).replace("_", "-")
            raise InputError(
                f"--{option} cannot be given with --resume: a run goes on as it was started"
            )


def _resume(
    folder: Path,
    data: str | None,
    device: str | None,
    data_dir: Path | None,
    track: str | None,
    as_json: bool,
) -> None:
    experiment = from_json(RunFolder(folder).manifest["experiment"])
    if data is not None and data != experiment.data:
        raise InputError(
            f"DATA is {data!r} but the run in {folder} used {experiment.data!r}; leave DATA out"
        )
    title = f"resumed {folder.name}"
    result = _run(experiment, title, folder, device, data_dir, resume=True, track=track)
    _show([result], folder, as_json)


def _show(results: list[Result], folder: Path | None, as_json: bool) -> None:
    summaries = [result.summary for result in results]
    table = Table("seed", "accuracy", "last 5 evaluations", "FPR", "FNR", "rounds", "seconds")
    for s in summaries:
        table.add_row(
            str(s["seed"]), *(percent(s[k]) for k in RATES), str(s["rounds"]), f"{s['seconds']:.1f}"
        )
    together = combined(summaries)
    if len(summaries) > 1:
        table.add_section()
        for label, values in (("mean", together), ("spread", together["spread"])):
            table.add_row(label, *(percent(values[k]) for k in RATES))
    out.print(table)
    for s in summaries:
        if s["fallbacks"]:
            warn(
                f"seed {s['seed']}: the model stayed as it was in {s['fallbacks']} of "
                f"{s['rounds']} rounds, because nobody was accepted"
            )
    where = f"records: {folder}" if folder else "no records kept (give --out FOLDER to keep them)"
    out.print(where, highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(together))


RATES = ("accuracy", "accuracy_last5", "fpr", "fnr")


def combined(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """One run's summary as it is; several runs' as means, with `spread` and `runs`.

    `spread` is the sample standard deviation over the seeds.
    """
    if len(summaries) == 1:
        return summaries[0]
    columns = {
        name: [s[name] for s in summaries if s[name] is not None]
        for name in (*RATES, "attack_success")
    }
    return {
        **summaries[0],
        **{name: statistics.fmean(v) if v else None for name, v in columns.items()},
        "seconds": sum(s["seconds"] for s in summaries),
        "spread": {
            name: statistics.stdev(v) if len(v) > 1 else None for name, v in columns.items()
        },
        "runs": summaries,
    }
