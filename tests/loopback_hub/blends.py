"""Blends from the loopback Hub through the real clients, each in a process of its own: its recipe, its command, what it left."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.loopback_hub.server import LoopbackHub
from trlm_core.artifacts.fingerprint import file_sha256
from trlm_core.artifacts.manifest import MANIFEST_NAME
from trlm_core.artifacts.store import Store
from trlm_core.base_model import make_base
from trlm_core.recipes.load import load_recipe, parse_recipe
from trlm_core.recipes.lock import pinned, references
from trlm_core.recipes.schema import FolderBase

ROOT = Path(__file__).parents[2]
Change = Callable[[dict[str, Any]], Any]  # of a recipe's tree, in place


def write_recipe(path: Path, hub: LoopbackHub, base: Path, change: Change, variant: str = "report") -> Path:
    """The report's recipe on another base, changed, pinned to the Hub's commits."""
    tree = load_recipe("trlm-135m", variant=variant).model_dump(mode="json")
    tree["base"] = folder_base(base).model_dump(mode="json")
    change(tree)
    pins = {each.key: _commit(hub, each.address) for each in references(parse_recipe(tree, where="test"))}
    path.write_text(yaml.safe_dump(pinned(tree, pins), sort_keys=False))
    return path


def folder_base(path: Path) -> FolderBase:
    return FolderBase(kind="folder", path=str(path), sha256=file_sha256(path / "model.safetensors"), label="tiny")


def store_with_base(root: Path, base: Path) -> Path:
    """A store that has the base: to make it costs more than a blend."""
    store = Store.open(root)
    make_base(store, folder_base(base))
    return store.root


def copied_store(store: Path, to: Path) -> Path:
    if not to.exists():
        shutil.copytree(store, to)
    return to


def command(recipe: Path, stage: str, store: Path, *before: str, driver: str = "blend_once") -> list[str]:
    return [sys.executable, "-m", f"tests.loopback_hub.{driver}", *before, str(recipe), stage, str(store)]


def environment(hub: LoopbackHub, home: Path) -> dict[str, str]:
    """Of a process that takes the loopback Hub for the Hub, from any working directory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    clients = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    return {**kept, **clients, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def told(out: str) -> dict[str, Any]:
    """What the process says at its end."""
    return json.loads(out.splitlines()[-1])


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file but the manifest, which tells the time."""
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST_NAME}


def _commit(hub: LoopbackHub, address: str) -> str:
    repository = hub.repositories.get(address)
    return repository.head.sha if repository is not None else "0" * 40
