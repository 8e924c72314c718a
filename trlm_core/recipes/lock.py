"""The lock of a recipe: what the names among its revisions mean, resolved once. `dataset HuggingFaceTB/smoltalk2 @ main: 1a2b3c...`

Recipe and lock make the fingerprint: a recipe is built with commits and hashes alone.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from trlm_core.recipes.schema import Recipe

PINNED = re.compile(r"[0-9a-f]{40}|sha256:[0-9a-f]{64}")
HEAD = "# Written by `trlm recipe lock`: what the names among the recipe's revisions meant then. Delete it to follow them anew.\n"


@dataclass(frozen=True, order=True)
class Reference:
    """Something outside that a recipe refers to."""

    kind: Literal["dataset", "model", "files"]
    address: str  # a repository, or a pattern of files
    revision: str
    format: str = ""  # of files

    @property
    def key(self) -> str:
        return f"{self.kind} {self.address} @ {self.revision}"

    @property
    def is_pinned(self) -> bool:
        return PINNED.fullmatch(self.revision) is not None


def references(recipe: Recipe) -> list[Reference]:
    return sorted(set(_references(recipe.model_dump(mode="json"))))


def unpinned(recipe: Recipe) -> list[Reference]:
    return [reference for reference in references(recipe) if not reference.is_pinned]


def pinned(tree: Any, pins: Mapping[str, str]) -> Any:
    """A recipe's tree with every name that is among the pins (key -> revision) replaced by what it means."""
    if isinstance(tree, list):
        return [pinned(each, pins) for each in tree]
    if not isinstance(tree, Mapping):
        return tree
    within = {key: pinned(value, pins) for key, value in tree.items()}
    reference = _reference(tree)
    return within if reference is None else {**within, "revision": pins.get(reference.key, reference.revision)}


def read_lock(path: Path) -> dict[str, str]:
    """Key -> revision; empty where there is no lock."""
    return dict(yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}


def write_lock(path: Path, pins: Mapping[str, str]) -> None:
    path.write_text(HEAD + yaml.safe_dump(dict(pins), sort_keys=True, width=1000))


def _references(tree: Any) -> Iterator[Reference]:
    if isinstance(tree, list):
        for each in tree:
            yield from _references(each)
    elif isinstance(tree, Mapping):
        reference = _reference(tree)
        if reference is not None:
            yield reference
        for each in tree.values():
            yield from _references(each)


def _reference(tree: Mapping[str, Any]) -> Reference | None:
    """What has a `repo` is the Hub's, and a model where it has a `label`; what has an `address` is files."""
    if "revision" not in tree:
        return None
    if "repo" in tree:
        return Reference("model" if "label" in tree else "dataset", str(tree["repo"]), str(tree["revision"]))
    return Reference("files", str(tree["address"]), str(tree["revision"]), str(tree.get("format", ""))) if "address" in tree else None
