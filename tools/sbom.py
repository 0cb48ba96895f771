"""Write the bill of materials of a release: `python tools/sbom.py dist`.

CycloneDX 1.6, in JSON: what a plain `pip install skymask` brings along, at the versions that are
installed here, with their licences and who needs whom; and the files of others that the package
carries, with their digests.
"""

import hashlib
import json
import re
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
CARRIED = ROOT / "src" / "skymask" / "report" / "plotly" / "plotly-cartesian.min.js"
NAME = "skymask"


def bill() -> dict[str, Any]:
    """The bill, made of the metadata of what is installed; the same whenever that is the same."""
    needs = dict(_closure(NAME))
    own = _component(distribution(NAME))
    script = _script()
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(needs, sort_keys=True)).urn,
        "version": 1,
        "metadata": {"component": own},
        "components": [
            *(_component(distribution(name)) for name in sorted(needs) if name != NAME),
            script,
        ],
        "dependencies": [
            {
                "ref": _ref(distribution(name)),
                "dependsOn": [
                    *(_ref(distribution(need)) for need in needs[name]),
                    *([script["bom-ref"]] if name == NAME else []),
                ],
            }
            for name in sorted(needs)
        ]
        + [{"ref": script["bom-ref"], "dependsOn": []}],
    }


def _closure(name: str) -> Iterator[tuple[str, list[str]]]:
    """Who needs whom without extras, from `name` on: (name, what it needs), each once."""
    seen, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        asked = map(Requirement, distribution(name).requires or ())
        needs = {
            _normal(need.name)
            for need in asked
            if need.marker is None or need.marker.evaluate({"extra": ""})
        }
        waiting += sorted(needs)
        yield name, sorted(needs)


def _component(found: Distribution) -> dict[str, Any]:
    licence = found.metadata.get("License-Expression")
    named = found.metadata.get("License")
    classified = [
        text.rpartition(" :: ")[2]
        for text in found.metadata.get_all("Classifier", [])
        if text.startswith("License ::")
    ]
    told: list[dict[str, Any]] = []
    if licence:
        told = [{"expression": licence}]
    elif classified or (named and "\n" not in named):
        told = [{"license": {"name": text}} for text in classified or [str(named)]]
    component = {
        "type": "library",
        "bom-ref": _ref(found),
        "name": _normal(found.name),
        "version": found.version,
        "purl": _ref(found),
    }
    return component | ({"licenses": told} if told else {})


def _script() -> dict[str, Any]:
    """The plotly.js that report pages carry."""
    content = CARRIED.read_bytes()
    found = re.search(rb"plotly\.js \([^)]*\) v(\d+\.\d+\.\d+)", content[:2000])
    if found is None:
        raise SystemExit(f"{CARRIED.relative_to(ROOT)} does not say its version")
    ref = f"pkg:npm/plotly.js-cartesian-dist-min@{found[1].decode()}"
    return {
        "type": "library",
        "bom-ref": ref,
        "name": "plotly.js-cartesian-dist-min",
        "version": found[1].decode(),
        "purl": ref,
        "licenses": [{"license": {"id": "MIT"}}],
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}],
    }


def _ref(found: Distribution) -> str:
    return f"pkg:pypi/{_normal(found.name)}@{quote(found.version)}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    path = Path(sys.argv[1]) / f"{NAME}-{distribution(NAME).version}.cdx.json"
    path.write_text(json.dumps(bill(), indent=2) + "\n", encoding="utf-8")
    print(path)
