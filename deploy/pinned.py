"""Prints the part of constraints.txt that the service, or its build, needs: for an image with
nothing else in it. Names, versions and hashes are those of the lock file.

    python deploy/pinned.py --extra postgres --extra notify
    python deploy/pinned.py --build
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def locked(text: str) -> dict[str, str]:
    """The entries of a lock file, with their hashes, by the name of the package."""
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    return {_name(each.split("==")[0]): each for each in entries if "==" in each}


def versions(entries: dict[str, str]) -> str:
    """The entries without hashes, as constraints for a resolver."""
    return "".join(each.partition("\\")[0].strip() + "\n" for each in entries.values())


def wanted(project: dict[str, object], extras: list[str], *, build: bool) -> list[str]:
    """The requirements of the project with these extras, or of its build."""
    if build:
        return list(project["build-system"]["requires"])  # type: ignore[index]  # its schema is known
    table = project["project"]
    found = list(table["dependencies"])  # type: ignore[index]
    for each in extras:
        found += table["optional-dependencies"][each]  # type: ignore[index]
    return found


def resolved(requirements: list[str], constraints: Path) -> set[str]:
    """The names of the packages that pip would install here; it installs none."""
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
        "--only-binary", ":all:", "--constraint", str(constraints), "--report", "-", *requirements,
    ]  # fmt: skip
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {_name(each["metadata"]["name"]) for each in report["install"]}


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).strip().lower()


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--extra", action="append", default=[])
    parser.add_argument("--build", action="store_true")
    options = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    entries = locked((ROOT / "deploy" / "constraints.txt").read_text())
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(versions(entries))
        file.flush()
        names = resolved(wanted(project, options.extra, build=options.build), Path(file.name))
    missing = sorted(names - set(entries))
    if missing:
        sys.exit(f"not in constraints.txt: {', '.join(missing)}")
    print("".join(entries[each] for each in sorted(names)), end="")


if __name__ == "__main__":
    main()
