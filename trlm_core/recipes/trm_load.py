"""Read a recipe of the TRM track: `trm-acceptance`, or a YAML file, then `--set phase2.training.steps=100`, into one frozen TRMRecipe."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trlm_core.recipes.load import RECIPES, RecipeError, parsed, read_yaml, with_setting
from trlm_core.recipes.lock import pinned, read_lock
from trlm_core.recipes.trm_schema import TRMRecipe


def trm_recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("trm-*.yaml") if not path.name.endswith(".lock.yaml"))


def load_trm_recipe(name: str, *, settings: Iterable[str] = (), pins: Mapping[str, str] | None = None) -> TRMRecipe:
    """The recipe of this name, or of a YAML file at this path, its revisions pinned by its lock, or by `pins`. Raises RecipeError."""
    tree = read_yaml(_recipe_file(name))
    for setting in settings:
        tree = with_setting(tree, setting)
    return parse_trm_recipe(pinned(tree, read_lock(trm_lock_path(name)) if pins is None else pins), where=name)


def trm_lock_path(name: str) -> Path:
    """Beside the recipe: trm-smollm3-3b.lock.yaml."""
    return _recipe_file(name).with_suffix(".lock.yaml")


def parse_trm_recipe(tree: Mapping[str, Any], *, where: str) -> TRMRecipe:
    return parsed(TRMRecipe, tree, where=where)


def _recipe_file(name: str) -> Path:
    path = Path(name) if Path(name).suffix in {".yaml", ".yml"} else RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise RecipeError(f"recipe: wanted one of {', '.join(trm_recipe_names())} or a path to a .yaml file, got {name!r}")
    return path
