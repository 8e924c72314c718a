"""Read a recipe: its YAML, an overlay (`--variant report`, `--budget full`), then `--set key=value`, into one frozen Recipe."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from trlm_core.recipes.lock import pinned, read_lock
from trlm_core.recipes.schema import Recipe

RECIPES = Path(__file__).parent
Schema = TypeVar("Schema", bound=BaseModel)


class RecipeError(ValueError):
    """The recipe cannot be read as asked; the message says what was wanted, what was got, and where."""


def recipe_names() -> list[str]:
    return sorted(path.parent.name for path in RECIPES.glob("*/recipe.yaml"))


def overlay_names(recipe: str, kind: str) -> list[str]:
    """Names of a recipe's overlays; kind is `variants` or `budgets`."""
    return sorted(path.stem for path in (RECIPES / recipe / kind).glob("*.yaml"))


def load_recipe(
    name: str,
    *,
    variant: str | None = None,
    budget: str | None = None,
    settings: Iterable[str] = (),
    pins: Mapping[str, str] | None = None,
) -> Recipe:
    """The recipe of this name, or of a YAML file at this path, its revisions pinned by its lock, or by `pins`. Raises RecipeError."""
    tree = read_yaml(_recipe_file(name))
    for kind, chosen in (("variants", variant), ("budgets", budget)):
        tree = merged(tree, _overlay(name, kind, chosen))
    for setting in settings:
        tree = with_setting(tree, setting)
    tree = pinned(tree, read_lock(lock_path(name)) if pins is None else pins)
    return parse_recipe(tree, where=name)


def lock_path(name: str) -> Path:
    """Beside the recipe: lock.yaml of one that comes with trlm, mine.lock.yaml of mine.yaml."""
    path = _recipe_file(name)
    return path.with_name("lock.yaml") if path.parent.parent == RECIPES else path.with_suffix(".lock.yaml")


def parse_recipe(tree: Mapping[str, Any], *, where: str) -> Recipe:
    return parsed(Recipe, tree, where=where)


def parsed(schema: type[Schema], tree: Mapping[str, Any], *, where: str) -> Schema:
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"recipe {where}: " + "; ".join(_words(item) for item in error.errors())) from error


def merged(tree: Any, overlay: Any) -> Any:
    """`overlay` laid over `tree`: mappings key by key, `stages` and `sources` by name, anything else replaced."""
    if isinstance(tree, Mapping) and isinstance(overlay, Mapping):
        return {**tree, **{key: merged(tree.get(key), value) for key, value in overlay.items()}}
    if _is_named_list(tree) and isinstance(overlay, Mapping):
        unknown = overlay.keys() - {item["name"] for item in tree}
        if unknown:
            raise RecipeError(f"overlay: wanted one of {', '.join(item['name'] for item in tree)}, got {', '.join(sorted(unknown))}")
        return [merged(item, overlay.get(item["name"], {})) for item in tree]
    return overlay


def with_setting(tree: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """The tree with one `dotted.key=value` (stages by name: `stages.stage1_sft.training.epochs=2`; values are YAML). Raises RecipeError."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {setting}: wanted key=value, for example stages.stage1_sft.training.learning_rate=1e-4")
    return _replaced(tree, key.split("."), _yaml_value(text), key)


def _replaced(tree: Any, path: list[str], value: Any, key: str) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if _is_named_list(tree):
        _require(head, [item["name"] for item in tree], key)
        return [_replaced(item, rest, value, key) if item["name"] == head else item for item in tree]
    if isinstance(tree, list):
        _require(head, [str(index) for index in range(len(tree))], key)
        return [_replaced(item, rest, value, key) if str(index) == head else item for index, item in enumerate(tree)]
    if not isinstance(tree, Mapping):
        raise RecipeError(f"--set {key}: wanted a key, got {head!r} below the value {tree!r}")
    _require(head, list(tree), key)
    return {**tree, head: _replaced(tree[head], rest, value, key)}


def _require(head: str, choices: list[str], key: str) -> None:
    if head not in choices:
        raise RecipeError(f"--set {key}: wanted one of {', '.join(choices)}, got {head!r}")


def _recipe_file(name: str) -> Path:
    given = Path(name)
    if given.suffix in {".yaml", ".yml"}:
        if not given.is_file():
            raise RecipeError(f"recipe {name}: wanted a file, got nothing there")
        return given
    if name not in recipe_names():
        raise RecipeError(f"recipe: wanted one of {', '.join(recipe_names())} or a path to a .yaml file, got {name!r}")
    return RECIPES / name / "recipe.yaml"


def _overlay(name: str, kind: str, chosen: str | None) -> dict[str, Any]:
    choices = overlay_names(name, kind)
    if chosen is None and kind == "variants" and choices:
        raise RecipeError(f"recipe {name}: wanted --variant {' | '.join(choices)}, got none; a variant is written out, never implied")
    if chosen is None:
        return {}
    if chosen not in choices:
        raise RecipeError(f"recipe {name}: wanted {kind[:-1]} {' | '.join(choices) or '(it has none)'}, got {chosen!r}")
    return read_yaml(RECIPES / name / kind / f"{chosen}.yaml")


def _is_named_list(tree: Any) -> bool:
    return isinstance(tree, list) and bool(tree) and all(isinstance(item, Mapping) and "name" in item for item in tree)


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(), Loader=_Yaml12Floats)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: wanted YAML, got {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: wanted a mapping, got {type(tree).__name__}")
    return tree


def _yaml_value(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Yaml12Floats)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set: wanted a YAML value, got {text!r}: {error}") from error


def _words(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "recipe"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    if item["type"] == "value_error":
        return f"{where}: {item['ctx']['error']}"
    if item["type"] == "missing":
        return f"{where}: missing"
    return f"{where}: {item['msg'][0].lower()}{item['msg'][1:]}, got {item['input']!r}"


class _Yaml12Floats(yaml.SafeLoader):
    """PyYAML reads `1e-4` as a string (YAML 1.1); here it is the number that everyone means."""


_Yaml12Floats.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12Floats.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.\d+(?:[eE][-+]?\d+)?)$"),
    list("-+0123456789."),
)
