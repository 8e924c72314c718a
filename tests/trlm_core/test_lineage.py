"""The lineage names what a run builds before it builds it."""

from collections.abc import Callable
from typing import Any

import pytest

from trlm_core.artifacts.store import Store
from trlm_core.lineage import Lineage, MissingArtifactError, finished, run_results
from trlm_core.recipes.schema import Recipe


def test_data_built_step_by_step_has_the_fingerprints_that_the_lineage_foretells(built: Any):
    lineage = Lineage(built.recipe)
    assert lineage.base().fingerprint == built.base.fingerprint
    for stage in built.stages.values():
        assert lineage.blend(stage.stage).fingerprint == stage.blend.fingerprint
        assert lineage.dataset(stage.stage).fingerprint == stage.dataset.fingerprint
        assert finished(built.store, lineage.dataset(stage.stage)) == stage.dataset


def test_a_stage_without_new_tokens_starts_from_its_parent_itself(tiny_recipe: Recipe):
    lineage = Lineage(tiny_recipe)
    first, second, third = tiny_recipe.stages
    assert lineage.start(first) == lineage.base()
    assert lineage.start(second).name == "stage2_sft_think-start"
    assert lineage.start(third) == lineage.checkpoint(second)


def test_a_change_in_one_stage_changes_it_and_what_comes_after(changed_recipe: Callable[..., Recipe], tiny_recipe: Recipe):
    before, after = Lineage(tiny_recipe), Lineage(changed_recipe(**{"stages.1.training.learning_rate": 7e-4}))
    same = [
        before.checkpoint(a).fingerprint == after.checkpoint(b).fingerprint
        for a, b in zip(before.recipe.stages, after.recipe.stages, strict=True)
    ]
    assert same == [True, False, False]


def test_everyone_who_answers_is_named_in_order(tiny_recipe: Recipe):
    names = [subject.name for subject in Lineage(tiny_recipe).subjects()]
    assert names == ["base", "base-few-shot", "stage1_sft", "stage2_sft_think-start", "stage2_sft_think", "stage3_dpo"]


@pytest.mark.parametrize(
    ("artifact", "maker"),
    [("dataset", "blend/stage-2"), ("start", "train/stage-2"), ("checkpoint", "train/stage-2"), ("held_out", "train/stage-2")],
)
def test_what_is_missing_is_named_with_what_makes_it(artifact: str, maker: str, tiny_recipe: Recipe, store: Store):
    spec = getattr(Lineage(tiny_recipe), artifact)(tiny_recipe.stages[1])
    with pytest.raises(MissingArtifactError, match=rf"wanted {spec.kind}/trlm-tiny/{spec.name} .* run {maker} with"):
        finished(store, spec)


def test_a_report_of_an_unfinished_run_says_what_is_missing(tiny_recipe: Recipe, store: Store):
    with pytest.raises(MissingArtifactError, match="run evaluate/checkpoint"):
        run_results(store, tiny_recipe)


def test_a_subject_that_the_recipe_does_not_have_is_answered_with_those_it_has(tiny_recipe: Recipe):
    lineage = Lineage(tiny_recipe)
    assert [subject.name for subject in lineage.chosen_subjects(["stage3_dpo", "base"])] == ["stage3_dpo", "base"]
    assert len(lineage.chosen_subjects(())) == 6
    with pytest.raises(ValueError, match=r"wanted some of base, base-few-shot, .*, got stage4$"):
        lineage.chosen_subjects(["stage4"])
