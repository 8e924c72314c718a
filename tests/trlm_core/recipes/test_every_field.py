"""No field of a stage is dead: each one that is identity changes what is built from it, and execution changes nothing."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from trlm_core.lineage import Lineage
from trlm_core.recipes.load import load_recipe, parse_recipe
from trlm_core.recipes.schema import Recipe

Path = tuple[str | int, ...]
FIRST_SFT, PAIRS = 0, 2
PUBLISHED = load_recipe("trlm-135m", variant="improved").model_dump(mode="json")
LOCAL = {**load_recipe("trlm-135m-local").model_dump(mode="json"), "evaluation": None}  # which would keep families for itself
# By the last key: values of a kind of their own. All others are changed by their type.
OTHERS: dict[str, Any] = {
    "sampling": ["head", "reservoir"],
    "thoughts": ["one", "none"],
    "family": ["lcm"],
    "bad_steps": ["stop", "skip"],
    "system_prompt": ["You think."],
    "answers_by": [None, "someone, MIT"],
    "subset": ["main", "socratic"],
    "near_duplicates": [None],
    "contamination": [None],
    "min_overlap": [0.25, 0.75],
    "threshold": [0.25, 0.75],
    "spares": [0.25, 0.75],
}
KINDS = {"kind", "form", "trainer"}  # with another, a source has other fields


def leaves(tree: Any, path: Path = ()) -> Iterator[Path]:
    """Every leaf of a recipe's tree; of a list of parts, those of the first of each kind."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from () if key in KINDS else leaves(value, (*path, key))
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        seen: set[str | None] = set()
        for number, each in enumerate(tree):
            if each.get("kind") not in seen:
                seen.add(each.get("kind"))
                yield from leaves(each, (*path, number))
    else:
        yield path


def other(key: str | int, value: Any) -> Any:
    """Another value that a recipe may have there."""
    if key in OTHERS:
        return next(each for each in OTHERS[str(key)] if each != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else value / 2
    if isinstance(value, list):
        return value[:-1] or ["another"]
    if isinstance(value, dict):
        return {"old": "new"}
    return 7 if value is None else f"{value}x"


def changed(tree: dict[str, Any], path: Path) -> Recipe:
    tree = copy.deepcopy(tree)
    place: Any = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = other(path[-1], place[path[-1]])
    return parse_recipe(tree, where="changed")


def paths(tree: dict[str, Any], number: int) -> list[Path]:
    """But those that one kind of source fixes: only pairs have faults, and only taken rows filters."""
    blend = tree["stages"][number]["blend"]
    fixed = [name for name, value in (("faults", []), ("filters", None)) if blend[name] == value]
    return [("stages", number, "blend", *path) for path in leaves(blend) if path[0] not in fixed]


@pytest.mark.parametrize("path", paths(PUBLISHED, FIRST_SFT), ids=lambda path: ".".join(map(str, path[3:])))
def test_every_field_of_a_taken_blend_changes_its_fingerprint(path: Path):
    _assert_other_blend(PUBLISHED, FIRST_SFT, path)


@pytest.mark.parametrize("number", [FIRST_SFT, PAIRS])
def test_every_field_of_a_generated_blend_changes_its_fingerprint(number: int):
    for path in paths(LOCAL, number):
        _assert_other_blend(LOCAL, number, path)


def test_the_fields_that_are_changed_are_all_that_a_blend_has():
    names = {path[3] for tree, number in ((PUBLISHED, FIRST_SFT), (LOCAL, PAIRS)) for path in paths(tree, number)}
    assert names == set(PUBLISHED["stages"][FIRST_SFT]["blend"])
    filters = {path[4] for path in paths(PUBLISHED, FIRST_SFT) if path[3] == "filters"}
    assert filters == set(PUBLISHED["stages"][FIRST_SFT]["blend"]["filters"])


@pytest.mark.parametrize("room", ["training", "rendering"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_field_of_a_training_and_of_a_rendering_changes_the_checkpoint_s_fingerprint(number: int, room: str):
    """What it changes in the trainer or in the rows is shown beside trl_config.py and stage_dataset.py."""
    values: dict[str, Any] = {"lr_scheduler_type": "linear", "min_lr_rate": 0.5, "precision": "float32"}
    values |= {"template": "reference", "loss_on": "all", "new_tokens": None}
    before = Lineage(parse_recipe(LOCAL, where="local"))
    for key, value in LOCAL["stages"][number][room].items():
        if key in KINDS or (key == "max_prompt_length" and value is None) or (key == "new_tokens" and value is None):
            continue
        tree = copy.deepcopy(LOCAL)
        stage = tree["stages"][number]
        others = {"dft": "nll", "nll": "dft", "apo_zero": "sigmoid"} if key == "loss_type" else {}
        given = values[key] if key in values and values[key] != value else other(key, value)
        stage[room][key] = others.get(value, given) if others else given
        _keep_valid(stage, key)
        after = Lineage(parse_recipe(tree, where="changed"))
        stages = [lineage.recipe.stages[number] for lineage in (before, after)]
        assert stages[0] != stages[1], key
        assert before.checkpoint(stages[0]).fingerprint != after.checkpoint(stages[1]).fingerprint, key


def test_the_report_s_execution_changes_no_fingerprint():
    tree = copy.deepcopy(PUBLISHED)
    for stage in tree["stages"]:
        stage["reported_execution"] = None
    before, after = Lineage(parse_recipe(PUBLISHED, where="published")), Lineage(parse_recipe(tree, where="changed"))
    for left, right in zip(before.recipe.stages, after.recipe.stages, strict=True):
        assert left != right
        assert before.checkpoint(left).fingerprint == after.checkpoint(right).fingerprint


def _assert_other_blend(tree: dict[str, Any], number: int, path: Path) -> None:
    before, after = Lineage(parse_recipe(tree, where="before")), Lineage(changed(tree, path))
    fingerprints = {lineage.blend(lineage.recipe.stages[number]).fingerprint for lineage in (before, after)}
    assert len(fingerprints) == 2, path


def _keep_valid(stage: dict[str, Any], key: str) -> None:
    """Fields that go together."""
    if key == "lr_scheduler_type":
        stage["training"]["min_lr_rate"] = None
    if key == "min_lr_rate":
        stage["training"]["lr_scheduler_type"] = "cosine_with_min_lr"
    if key == "template" and stage["training"]["trainer"] == "sft":
        stage["rendering"]["loss_on"] = "all"
