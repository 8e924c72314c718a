"""What pip installs into an image: `python pins.py FOLDER [EXTRA...]`, run where pyproject.toml and constraints.txt lie.

Writes FOLDER/requirements.txt (the project's dependencies) and FOLDER/constraints.txt (its pins). Where torch is installed already, as in
an image of AMD's, its version takes the place of the project's in both: pip then finds it there and leaves it alone.
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

NAMES_TORCH = re.compile(r"torch\s*(\[[^\]]*\]\s*)?([=<>!~;@]|$)")  # not torchvision


def main(folder: str, *extras: str) -> None:
    torch = installed_torch()
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    _write(target / "requirements.txt", with_torch(requirements(project, extras), torch))
    _write(target / "constraints.txt", with_torch(Path("constraints.txt").read_text().splitlines(), torch))


def installed_torch() -> str | None:
    """The version that pip compares: with its local part, as in 2.10.0+rocm7.2.4."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def requirements(project: dict[str, Any], extras: Iterable[str]) -> list[str]:
    return [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]


def with_torch(lines: list[str], torch: str | None) -> list[str]:
    """The lines, with each that names torch replaced by `torch==` the version that is installed; unchanged where none is."""
    return [f"torch=={torch}" if torch and NAMES_TORCH.match(line) else line for line in lines]


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
