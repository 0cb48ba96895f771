"""`skymask list`, `data` and `doctor`: what there is."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from skymask import data as data_sets
from skymask.cli.shared import AsJson, DataDir, out
from skymask.components import bounds_of, describe, settings_of
from skymask.data import DATA_SETS, OFFICIAL
from skymask.environment import device_name, installed
from skymask.errors import unknown
from skymask.experiment import DEFAULTS, KINDS
from skymask.models import MODELS


def list_components(as_json: AsJson = False) -> None:
    """List data sets, attacks, defences, partitions and models, with their settings."""
    found: dict[str, Any] = {
        f"{kind}s": {name: _listed(name, kind) for name in makers} for kind, makers in KINDS.items()
    }
    found["data"] = {
        name: {
            "model": d.model,
            "clients": d.clients,
            "rounds": d.rounds,
            "local": dataclasses.asdict(d.local),
            "partition": repr(d.partition),
        }
        for name, d in DEFAULTS.items()
    }
    found["models"] = list(MODELS)
    for kind in KINDS:
        table = Table("name", "what it does", "settings", title=f"{kind}s", title_justify="left")
        for name, entry in found[f"{kind}s"].items():
            settings = ", ".join(f"{k}={v['default']}" for k, v in entry["settings"].items())
            table.add_row(name, entry["about"], settings)
        out.print(table)
    table = Table(
        "name",
        "model",
        "clients",
        "rounds",
        "local training",
        "partition",
        title="data sets",
        title_justify="left",
    )
    for name, d in DEFAULTS.items():
        local = f"{d.local.steps} x {d.local.batch} at {d.local.lr}"
        table.add_row(name, d.model, str(d.clients), str(d.rounds), local, str(d.partition))
    out.print(table)
    out.print(f"models: {', '.join(MODELS)}")
    if as_json:
        print(json.dumps(found))


def data_command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Data sets to download if they are missing.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Say where each data set is; download those that are named."""
    for name in names or []:
        if name not in DATA_SETS:
            raise unknown("data set", name, DATA_SETS)
    for name in names or []:
        if name in OFFICIAL:
            data_sets.fetch(name, data_dir)
    out.print(_data_table(data_dir))


def doctor(data_dir: DataDir = None) -> None:
    """Say what is installed, which devices there are and which data sets are found."""
    table = Table("package", "version", title="installed", title_justify="left")
    for name, number in installed().items():
        table.add_row(name, number)
    out.print(table)
    devices = [device_name(torch.device("cpu"))]
    devices += [device_name(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]
    out.print(f"devices: {'; '.join(devices)} (torch uses {torch.get_num_threads()} threads)")
    out.print(_data_table(data_dir))


def _listed(name: str, kind: str) -> dict[str, Any]:
    """What `list` says of one component."""
    maker = KINDS[kind][name]
    bounds = bounds_of(maker)
    described = _filled_text(maker, kind)
    return {
        "kind": kind,
        "about": (maker.__doc__ or "").strip().split("\n")[0],
        "reference": getattr(getattr(maker, "__self__", maker), "reference", None),
        "settings": {
            field: {
                "default": described.get(field, default),
                "bound": bounds[field].text if field in bounds else None,
            }
            for field, default in settings_of(maker).items()
        },
    }


def _filled_text(maker: Any, kind: str) -> dict[str, Any]:
    """The default settings that are components, as their names."""
    settings = settings_of(maker)
    inner = {field: bound.kind for field, bound in bounds_of(maker).items() if bound.kind}

    def name_of(part: Any, kind: str) -> str:
        return str(describe(part, KINDS, kind)["name"])

    return {
        field: " + ".join(name_of(part, of) for part in settings[field])
        if isinstance(settings[field], tuple)
        else name_of(settings[field], of)
        for field, of in inner.items()
        if settings[field] is not None
    }


def _data_table(data_dir: Path | None) -> Table:
    table = Table("data set", "found in", title="data sets", title_justify="left")
    for name in DATA_SETS:
        if name not in OFFICIAL:
            table.add_row(name, "built in")
            continue
        where = data_sets.find(name, data_dir)
        table.add_row(name, str(where) if where else "not found; get it with: skymask data " + name)
    return table
