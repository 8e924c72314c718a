"""Recipes of the TRM track: they say what the specification asks, a setting changes one leaf, and what cannot be built is named."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from trlm_core.recipes.load import RECIPES, RecipeError, read_yaml, recipe_names
from trlm_core.recipes.lock import references
from trlm_core.recipes.trm_load import load_trm_recipe, parse_trm_recipe, trm_lock_path, trm_recipe_names
from trlm_core.recipes.trm_schema import OwnTraces, TrainedLlamaBase, TRMRecipe
from trlm_core.trm.config import net_alone, training_cost_of_a_step
from trlm_core.trm.phase_models import recursion_of

ACCEPTANCE = load_trm_recipe("trm-acceptance").model_dump(mode="json")


def changed(**leaves: Any) -> dict[str, Any]:
    """`changed(**{"phase2.training.steps": 5})`: the acceptance recipe with some leaves replaced."""
    tree = json.loads(json.dumps(ACCEPTANCE))
    for path, value in leaves.items():
        *parents, last = path.split(".")
        place = tree
        for part in parents:
            place = place[part]
        place[last] = value
    return tree


def test_there_are_four_and_none_of_them_is_a_recipe_of_stages():
    assert trm_recipe_names() == ["trm-acceptance", "trm-smollm2-135m", "trm-smollm2-135m-laptop", "trm-smollm3-3b"]
    assert not set(trm_recipe_names()) & set(recipe_names())


@pytest.mark.parametrize("name", trm_recipe_names())
def test_a_recipe_survives_its_own_dump_and_its_json_schema(name: str):
    recipe = load_trm_recipe(name)
    assert parse_trm_recipe(recipe.model_dump(mode="json"), where="dump") == recipe
    jsonschema.validate(read_yaml(RECIPES / f"{name}.yaml"), TRMRecipe.model_json_schema())


@pytest.mark.parametrize(
    ("name", "sizes"),
    [  # M, d, heads, n, T, N
        ("trm-acceptance", (16, 96, 4, 1, 1, 4)),
        ("trm-smollm2-135m", (64, 576, 9, 6, 3, 16)),
        ("trm-smollm3-3b", (256, 512, 8, 6, 3, 16)),
    ],
)
def test_sizes_are_those_of_the_specification_but_for_the_n_of_acceptance(name: str, sizes: tuple[int, ...]):
    model = load_trm_recipe(name).model
    recursion = (model.n_latent_steps, model.n_deep_recursions, model.n_supervision_steps)
    assert (model.num_latents, model.width, model.n_heads, *recursion) == sizes
    assert model.n_layers == 2


def test_the_3b_recipe_holds_the_notebooks_settings():
    recipe = load_trm_recipe("trm-smollm3-3b")
    assert recipe.phase2b is not None
    assert recipe.phase2b.adapter.model_dump() == {"r": 16, "lora_alpha": 32, "target_modules": ("q_proj", "k_proj", "v_proj", "o_proj")}
    assert (recipe.phase2b.training.learning_rate, recipe.phase2b.training.warmup_steps, recipe.phase2b.training.batch) == (2e-4, 100, 8)
    assert (recipe.precision, recipe.model.insertion, recipe.phase2.ema_decay) == ("bf16_mixed", "slide", 0.999)
    assert recipe.phase3 is not None


def test_a_name_among_its_revisions_is_found_for_the_lock():
    recipe: Any = load_trm_recipe("trm-smollm3-3b")
    assert [each.key for each in references(recipe)] == ["model HuggingFaceTB/SmolLM3-3B @ main"]
    assert trm_lock_path("trm-smollm3-3b").name == "trm-smollm3-3b.lock.yaml"
    pins = {"model HuggingFaceTB/SmolLM3-3B @ main": "a" * 40}
    assert load_trm_recipe("trm-smollm3-3b", pins=pins).base.revision == "a" * 40  # type: ignore[union-attr]


def test_the_twin_without_recursion_gets_as_many_layer_passes_as_the_trm():
    recipe = load_trm_recipe("trm-acceptance")
    assert recipe.controls.nonrecursive is not None
    assert recipe.controls.nonrecursive.batch == recipe.phase2.training.batch
    trm = recursion_of(recipe.model)
    passes = recipe.phase2.training.steps * training_cost_of_a_step(trm)
    assert recipe.controls.nonrecursive.steps * training_cost_of_a_step(net_alone(trm)) == passes == 76_800


def test_a_setting_changes_one_leaf():
    before, after = (load_trm_recipe("trm-acceptance", settings=settings) for settings in ([], ["phase2.training.learning_rate=1e-4"]))
    assert after.phase2.training.learning_rate == 1e-4
    assert after.model_copy(update={"phase2": before.phase2}) == before


ABLATIONS = {
    "model.n_latent_steps=6": ("model", "n_latent_steps", 6),
    "model.n_deep_recursions=2": ("model", "n_deep_recursions", 2),
    "model.n_supervision_steps=16": ("model", "n_supervision_steps", 16),
    "model.residual_init_scale=auto": ("model", "residual_init_scale", "auto"),
    "model.residual_init_scale=1": ("model", "residual_init_scale", 1.0),
    "model.norm=pre": ("model", "norm", "pre"),
    "model.latent_norm=false": ("model", "latent_norm", False),
    "model.slot_embeddings=false": ("model", "slot_embeddings", False),
    "model.num_latents=8": ("model", "num_latents", 8),
    "model.insertion=slide": ("model", "insertion", "slide"),
    "phase2.ema_decay=0": ("phase2", "ema_decay", 0.0),
    "phase2.losses.token=0": ("phase2.losses", "token", 0.0),
    "controls.pause.steps=2000": ("controls.pause", "steps", 2000),
    "evaluation.steps=[1,2,4,8,16,32]": ("evaluation", "steps", (1, 2, 4, 8, 16, 32)),
}


@pytest.mark.parametrize("setting", ABLATIONS)
def test_every_ablation_of_the_specification_is_one_setting(setting: str):
    part, key, value = ABLATIONS[setting]
    place: Any = load_trm_recipe("trm-acceptance", settings=[setting])
    for each in part.split("."):
        place = getattr(place, each)
    assert getattr(place, key) == value


def test_a_file_is_a_recipe_too(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(changed(name="mine")))
    assert load_trm_recipe(str(path)).name == "mine"
    assert trm_lock_path(str(path)) == tmp_path / "mine.lock.yaml"


@pytest.mark.parametrize("name", ["trm-nothing", "nowhere.yaml"])
def test_an_unknown_recipe_is_an_error_with_those_that_there_are(name: str):
    with pytest.raises(RecipeError, match=rf"wanted one of trm-acceptance, .* or a path to a \.yaml file, got '{name}'"):
        load_trm_recipe(name)


def test_no_field_has_a_default():
    for path in leaves(ACCEPTANCE):
        tree = json.loads(json.dumps(ACCEPTANCE))
        place = tree
        for part in path[:-1]:
            place = place[part]
        del place[path[-1]]
        with pytest.raises(RecipeError, match=r"missing|unable to extract tag"):
            parse_trm_recipe(tree, where=".".join(map(str, path)))


@pytest.mark.parametrize(
    ("leaf", "value", "said"),
    [
        ("phase2.trainer", "sgd", "phase2.trainer: unknown key"),
        ("phase2.training.warmup_steps", 6_400, "wanted warmup_steps below steps (6,400), got 6,400"),
        ("phase1.identity_steps", 1_400, "wanted identity_steps below training.steps (1,400), got 1,400"),
        ("phase1.training.batch", 1, "latent_noise: wanted a training.batch of at least 2, over which a deviation is taken, or 0, got a batch of 1"),
        ("phase1.norm_examples", 999, "phase1.norm_examples: input should be greater than or equal to 1000, got 999"),
        ("phase1.norm_examples", 6_001, "phase1.norm_examples: wanted at most the 6,000 of train, got 6,001"),
        ("model.width", 100, "width: wanted a multiple of 8 (4 heads of even size), got 100"),
        ("model.norm", "none", "model.norm: input should be 'post' or 'pre', got 'none'"),
        ("model.latent_norm", "no", "model.latent_norm: input should be a valid boolean, got 'no'"),
        ("model.slot_embeddings", 0, "model.slot_embeddings: input should be a valid boolean, got 0"),
        ("phase2.curriculum", [{"share": 1.0, "n_latent_steps": 1, "n_deep_recursions": 1}], "wanted shares that leave some steps at full depth, got 1 in all"),
        ("model.hidden_layer", -2, "model.hidden_layer: wanted -1 (after the final norm) with losses of a thought's tokens, got -2; set the token"),
        ("data.givens", [3, 6], "givens: wanted 4 (the fewest that any puzzle with one solution has) to 15, got [3, 6]"),
        ("base", {"kind": "checkpoint", "recipe": "trlm-135m-local", "variant": None, "budget": None, "stage": "stage2_sft_think"}, "got checkpoint with sudoku4"),
        ("controls.pause", None, "got a difference in pause"),
        ("evaluation.rows", ["trm", "nonrecursive", "pause"], "got a difference in direct_tuned"),
        ("evaluation.examples", 501, "evaluation.examples: wanted at most the 500 of validation, got 501"),
        ("phase3.loss_type", "ppo", "got 'ppo'"),
        ("phase3.group_size", 1, "phase3.group_size: input should be greater than or equal to 2, got 1"),
        ("phase2.training.steps", 3200.5, "phase2.training.steps: input should be a valid integer"),
        ("base.training.betas", [0.9, 1.0], "betas"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_named(leaf: str, value: Any, said: str):
    with pytest.raises(RecipeError) as raised:
        parse_trm_recipe(changed(**{leaf: value}), where="changed")
    assert said in str(raised.value)


def test_puzzles_as_prompts_go_with_thoughts_about_puzzles():
    with pytest.raises(
        RecipeError, match=r"phase3\.prompts: wanted null, or puzzles with data of kind sudoku4, got puzzles with own_traces"
    ):
        load_trm_recipe("trm-smollm3-3b", settings=["phase3.prompts={seed: 1, givens: [5], puzzles: 10}"])


def test_another_layer_s_states_go_with_the_losses_of_states_and_answers():
    silent = {"phase1.losses.token": 0.0, "phase2.losses.token": 0.0, "phase2.answer_share": 1.0}
    assert parse_trm_recipe(changed(**{"model.hidden_layer": -2}, **silent), where="changed").model.hidden_layer == -2
    for leaf, value in (("phase1.losses.token", 1.0), ("phase2.answer_share", 0.9), ("phase2.losses.answer", 0.0)):
        with pytest.raises(RecipeError, match=r"model\.hidden_layer: wanted -1"):
            parse_trm_recipe(changed(**{"model.hidden_layer": -2}, **(silent | {leaf: value})), where="changed")


def test_the_rate_climbs_falls_and_ends_at_its_share():
    base = load_trm_recipe("trm-acceptance", settings=["base.training.final_rate_share=0.02"]).base
    assert isinstance(base, TrainedLlamaBase)
    rates = [base.training.rate_at(step) for step in (0, 49, 50, base.training.steps - 1)]
    assert rates == pytest.approx([3e-3 / 50, 3e-3, 3e-3, 3e-3 * 0.02])


def test_most_examples_of_own_traces_are_the_questions_of_all_families():
    recipe = load_trm_recipe("trm-smollm2-135m")
    assert isinstance(recipe.data, OwnTraces)
    assert [recipe.most_examples(split) for split in ("train", "validation", "test")] == [5_200, 144, 288]


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(tree, dict) and tree:
        return [leaf for key, value in tree.items() for leaf in leaves(value, (*path, key))]
    return [path]
