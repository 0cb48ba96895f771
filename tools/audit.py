"""Say what pip-audit found: `python tools/audit.py FOUND.json`; exits with 0 only for a clean record.

pip-audit itself calls packages that its database does not know "skipped" and goes on to report no
weakness: where the database cannot be asked, that would be all of them.
"""

import json
import sys
from pathlib import Path
from typing import Any


def verdict(found: dict[str, Any]) -> tuple[bool, str]:
    """Whether every package was looked up and none has a known weakness; and a sentence on it."""
    packages = found["dependencies"]
    unknown = [each["name"] for each in packages if "vulns" not in each]
    weak = [
        f"{each['name']} {each['version']}: {', '.join(known['id'] for known in each['vulns'])}"
        for each in packages
        if each.get("vulns")
    ]
    if weak:
        return False, "weaknesses are known of " + "; ".join(weak)
    if unknown or not packages:
        some = f" ({', '.join(unknown[:3])}, ...)" if unknown else ""
        return False, (
            f"{len(unknown)} of {len(packages)} packages could not be looked up{some}, so nothing "
            "is known of them; is the database of weaknesses within reach?"
        )
    return True, f"no weakness is known of the {len(packages)} pinned packages"


def main() -> None:
    """Print the sentence; exit with 1 if it is bad news."""
    path = Path(sys.argv[1])
    if not path.exists():
        raise SystemExit("make audit: pip-audit could not ask its database (its words are above)")
    good, told = verdict(json.loads(path.read_text(encoding="utf-8")))
    if not good:
        raise SystemExit(f"make audit: {told}")
    print(f"make audit: {told}")


if __name__ == "__main__":
    main()
