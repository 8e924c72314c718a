"""Reading a recipe: overlays, settings, YAML 1.2 numbers, and errors that name what was wanted, what was got, and where."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from trlm_core.recipes.load import RecipeError, load_recipe, merged, overlay_names, parse_recipe, recipe_names, with_setting
from trlm_core.recipes.schema import Recipe


def test_both_recipes_are_listed():
    assert {"trlm-135m", "trlm-135m-local"} <= set(recipe_names())
    assert overlay_names("trlm-135m", "variants") == ["improved", "reference", "report"]


def test_a_yaml_file_and_the_tree_in_it_are_the_same_recipe(tiny_recipe_file: Path, tiny_recipe_tree: dict[str, Any]):
    assert load_recipe(str(tiny_recipe_file)) == parse_recipe(tiny_recipe_tree, where="tree")


def test_a_recipe_survives_its_own_dump(tiny_recipe: Recipe):
    assert parse_recipe(tiny_recipe.model_dump(mode="json"), where="dump") == tiny_recipe


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("trlm-136m", {}, ["wanted one of trlm-135m, trlm-135m-local", "got 'trlm-136m'"]),
        ("nowhere/recipe.yaml", {}, ["nowhere/recipe.yaml", "wanted a file", "got nothing"]),
        ("trlm-135m", {}, ["trlm-135m", "wanted --variant improved | reference | report", "got none"]),
        ("trlm-135m", {"variant": "paper"}, ["trlm-135m", "wanted variant improved | reference | report", "got 'paper'"]),
        ("trlm-135m-local", {"variant": "report"}, ["trlm-135m-local", "wanted variant (it has none)", "got 'report'"]),
        ("trlm-135m-local", {"budget": "endless"}, ["trlm-135m-local", "wanted budget", "got 'endless'"]),
    ],
)
def test_an_unknown_recipe_variant_or_budget_is_named_with_the_choices(name: str, options: dict[str, Any], said: list[str]):
    _says(said, lambda: load_recipe(name, **options))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("stages.stage4.training.epochs=2", ["stages.stage4.training.epochs", "wanted one of stage1_sft", "got 'stage4'"]),
        ("stages.stage1_sft.training.epoch=2", ["stages.stage1_sft.training.epoch", "wanted one of", "epochs", "got 'epoch'"]),
        ("stages.stage1_sft.training.epochs.x=2", ["wanted a key", "got 'x'"]),
        ("stages.stage1_sft.blend.sources.99.num_examples=2", ["wanted one of 0, 1", "got '99'"]),
        ("learning_rate", ["--set learning_rate", "wanted key=value"]),
        ("name=[", ["--set", "wanted a YAML value", "got '['"]),
    ],
)
def test_a_setting_that_fits_nowhere_is_named_with_the_choices(settings: str, said: list[str]):
    _says(said, lambda: load_recipe("trlm-135m-local", settings=[settings]))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("stages.0.training.learning_rte", 1e-3, ["changed", "stages.0", "learning_rte", "unknown key"]),
        ("stages.0.training.lr_scheduler_type", "cosin", ["lr_scheduler_type", "'cosine'", "got 'cosin'"]),
        ("stages.0.training.loss_type", "ntp", ["loss_type", "'nll' or 'dft'", "got 'ntp'"]),
        ("stages.0.training.learning_rate", "fast", ["learning_rate", "number", "got 'fast'"]),
        ("stages.0.training.epochs", 1.5, ["epochs", "integer", "got 1.5"]),
        ("stages.0.training.epochs", True, ["epochs", "integer", "got True"]),
        ("stages.0.training.warmup_ratio", 1.5, ["warmup_ratio", "less than or equal to 1", "got 1.5"]),
        ("stages.0.blend.sources.1.num_examples", -5, ["stages.0.blend.sources.1", "num_examples", "greater than 0", "got -5"]),
        ("stages.0.blend.sources.1.num_held_out", -1, ["num_held_out", "greater than or equal to 0", "got -1"]),
        ("stages.0.blend.sources.1.form", "essay", ["form", "'answer', 'trace' or 'pair'", "got 'essay'"]),
        ("stages.1.parent", "stage9", ["stages.stage2_sft_think.parent", "wanted one of base, stage1_sft", "got 'stage9'"]),
        ("stages.0.parent", "stage2_sft_think", ["stages.stage1_sft.parent", "wanted one of base", "got 'stage2_sft_think'"]),
        ("stages.2.training.min_lr_rate", None, ["min_lr_rate", "cosine_with_min_lr"]),
        ("stages.1.rendering.new_tokens", {"tokens": ["<think>"], "start": "mean", "margin": 2.0}, ["margin", "due_place"]),
        ("stages.2.blend.unseen_faults", ["wrong_result"], ["unseen_faults", "wrong_result"]),
        ("stages.2.rendering.max_prompt_length", None, ["stage3_dpo", "max_prompt_length", "dpo"]),
        ("stages.0.rendering.max_prompt_length", 64, ["stage1_sft", "max_prompt_length", "dpo"]),
        ("stages.2.blend.faults", [], ["stage3_dpo", "faults", "pair"]),
        ("stages.1.blend.sources.0.form", "pair", ["stage2_sft_think", "form: pair", "chain_sum-pair"]),
        ("evaluation.families", ["gcd", "sudoku"], ["families", "wanted sizes", "sudoku"]),
        ("evaluation.unseen_families", ["chain_sum"], ["evaluation.unseen_families", "no stage trains on", "chain_sum"]),
        ("generator", None, ["generator", "reasoning-gym", "got null"]),
        ("dialogs", None, ["dialogs", "chatterbot-corpus", "got null"]),
        ("variant", "best", ["variant", "'report', 'reference' or 'improved'", "got 'best'"]),
        ("name", "My Recipe", ["name", "pattern", "got 'My Recipe'"]),
    ],
)
def test_a_key_or_value_that_no_recipe_has_is_named(changed_recipe: Callable[..., Recipe], path: str, value: Any, said: list[str]):
    _says(said, lambda: changed_recipe(**{path: value}))


def test_a_missing_decision_is_an_error_and_never_a_default(tiny_recipe_tree: dict[str, Any]):
    for key in tiny_recipe_tree:
        tree = {name: value for name, value in tiny_recipe_tree.items() if name != key}
        _says([key, "missing"], lambda tree=tree: parse_recipe(tree, where="short"))


def test_a_missing_field_of_a_training_is_an_error_and_never_a_default(tiny_recipe_tree: dict[str, Any]):
    for number, stage in enumerate(tiny_recipe_tree["stages"]):
        for key in stage["training"].keys() - {"trainer"}:
            training = {name: value for name, value in stage["training"].items() if name != key}
            stages = [{**each, "training": training} if each is stage else each for each in tiny_recipe_tree["stages"]]
            _says(
                [f"stages.{number}", key, "missing"], lambda stages=stages: parse_recipe({**tiny_recipe_tree, "stages": stages}, where="x")
            )


def test_a_source_that_stands_twice_is_an_error(tiny_recipe_tree: dict[str, Any]):
    stage = tiny_recipe_tree["stages"][1]
    twice = {**stage, "blend": {**stage["blend"], "sources": [stage["blend"]["sources"][0]] * 2}}
    tree = {**tiny_recipe_tree, "stages": [tiny_recipe_tree["stages"][0], twice, tiny_recipe_tree["stages"][2]]}
    _says(["wanted every source once", "chain_sum-trace"], lambda: parse_recipe(tree, where="twice"))


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("3.0e-4", 3e-4), ("1.e-4", 1e-4), (".5e-3", 5e-4), ("+2e-4", 2e-4), ("0.01", 0.01)],
)
def test_numbers_are_yaml_1_2_numbers_in_settings_and_in_files(text: str, number: float, tiny_recipe_file: Path):
    assert (
        load_recipe(str(tiny_recipe_file), settings=[f"stages.stage1_sft.training.learning_rate={text}"]).stages[0].training.learning_rate
        == number
    )
    lines = tiny_recipe_file.read_text().replace("learning_rate: 0.0001", f"learning_rate: {text}")
    tree = yaml.safe_load(tiny_recipe_file.read_text())
    assert tree["stages"][0]["training"]["learning_rate"] == 1e-4, "the text that is replaced"
    tiny_recipe_file.write_text(lines)
    assert load_recipe(str(tiny_recipe_file)).stages[0].training.learning_rate == number


def test_words_with_an_e_stay_words():
    assert with_setting({"description": "x"}, "description=e4") == {"description": "e4"}
    assert with_setting({"description": "x"}, "description=1.2.3") == {"description": "1.2.3"}


def test_a_setting_names_its_stage_and_changes_that_leaf_only():
    before = load_recipe("trlm-135m-local")
    after = load_recipe("trlm-135m-local", settings=["stages.stage2_sft_think.training.epochs=7", "evaluation.few_shot=1"])
    assert (after.stage("stage2_sft_think").training.epochs, after.stage("stage1_sft").training.epochs) == (
        7,
        before.stages[0].training.epochs,
    )
    assert after.evaluation is not None
    assert after.evaluation.few_shot == 1
    assert after.stage("stage3_dpo") == before.stage("stage3_dpo")


def test_a_later_setting_wins_and_a_source_is_named_by_its_place():
    settings = ["stages.stage1_sft.blend.sources.0.num_examples=9", "stages.stage1_sft.blend.sources.0.num_examples=10", "evaluation=null"]
    recipe = load_recipe("trlm-135m-local", settings=settings)
    assert recipe.stages[0].blend.sources[0].num_examples == 10
    assert recipe.evaluation is None


def test_an_overlay_is_laid_over_mappings_key_by_key_and_stages_by_name():
    tree = {"stages": [{"name": "a", "t": {"x": 1, "y": 2}}, {"name": "b", "t": {"x": 1}}], "seeds": [1, 2]}
    assert merged(tree, {"stages": {"b": {"t": {"x": 5}}}, "seeds": [3]}) == {
        "stages": [{"name": "a", "t": {"x": 1, "y": 2}}, {"name": "b", "t": {"x": 5}}],
        "seeds": [3],
    }


def test_an_overlay_for_a_stage_that_is_not_there_is_an_error():
    _says(["wanted one of a", "got b"], lambda: merged({"stages": [{"name": "a"}]}, {"stages": {"b": {}}}))


@pytest.mark.parametrize(("text", "said"), [("- a\n- b\n", ["wanted a mapping", "got list"]), ("a: [", ["wanted YAML"])])
def test_a_file_that_holds_no_recipe_is_named(text: str, said: list[str], tmp_path: Path):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    _says([str(path), *said], lambda: load_recipe(str(path)))


def _says(said: list[str], act: Callable[[], object]) -> None:
    with pytest.raises(RecipeError) as raised:
        act()
    assert [word for word in said if word not in str(raised.value)] == [], str(raised.value)
