"""The harness end to end on the tiny model, and the questions that it asks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.data.rows import schema_of
from trlm_core.data.shards import read_shards
from trlm_core.data.split import is_held_out
from trlm_core.evals.harness import answer_questions, read_held_out, read_replies, score_held_out
from trlm_core.evals.specs import held_out_spec, replies_spec
from trlm_core.evals.suites import SuiteError, make_questions, questions_spec, read_questions
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import Evaluation, Recipe
from trlm_core.training.new_tokens import make_start

CPU = Execution(device="cpu")


@pytest.fixture
def evaluation(built: Any) -> Evaluation:
    assert built.recipe.evaluation is not None
    return built.recipe.evaluation


@pytest.fixture
def questions(built: Any, evaluation: Evaluation) -> Manifest:
    return make_questions(built.store, built.recipe, evaluation)


def test_questions_are_as_many_as_the_recipe_asks_of_seen_and_unseen_families(built: Any, questions: Manifest):
    asked = read_questions(built.folder(questions))
    assert [(question.family, question.trained_on) for question in asked] == [
        ("chain_sum", True),
        ("chain_sum", True),
        ("letter_counting", True),
        ("letter_counting", True),
        ("lcm", False),
        ("lcm", False),
    ]
    assert len({question.question for question in asked}) == 6


def test_questions_are_all_held_out_and_in_no_blend_and_their_shots_are_not(built: Any, questions: Manifest):
    asked = read_questions(built.folder(questions))
    trained = {
        row["messages" if "messages" in row else "chosen"][0]["content"]
        for stage in built.stages.values()
        for row in read_shards(built.folder(stage.blend), "train", schema_of(stage.stage)).to_pylist()
    }
    assert all(is_held_out(question.question) for question in asked)
    assert not {question.question for question in asked} & trained
    assert all(len(question.shots) == 1 and not is_held_out(question.shots[0][0]) for question in asked)


def test_another_seed_asks_other_questions(built: Any, evaluation: Evaluation, questions: Manifest):
    other = make_questions(built.store, built.recipe, evaluation.model_copy(update={"seed": 5}))
    asked = [{question.question for question in read_questions(built.folder(each))} for each in (questions, other)]
    assert asked[0] != asked[1]


def test_a_family_that_cannot_ask_enough_is_an_error_with_both_numbers(store: Store, built: Any, evaluation: Evaluation):
    many = evaluation.model_copy(update={"questions_per_family": 4_000})
    with pytest.raises(SuiteError, match=r"evaluation of chain_sum: wanted 4000 questions, its sizes give \d+; lower"):
        make_questions(store, built.recipe, many)


def test_goals_are_no_part_of_what_is_asked(built: Any, evaluation: Evaluation):
    goals = evaluation.goals.model_copy(update={"well_formed": 0.1})
    other = evaluation.model_copy(update={"goals": goals, "max_new_tokens": 99})
    assert questions_spec(built.recipe, evaluation).fingerprint == questions_spec(built.recipe, other).fingerprint


@pytest.mark.parametrize("shots", [False, True])
def test_a_checkpoint_answers_every_question_and_the_summary_has_both_groups(
    shots: bool, built: Any, evaluation: Evaluation, questions: Manifest
):
    stage, told = built.recipe.stages[0], []
    manifest = answer_questions(
        built.store,
        built.recipe,
        evaluation,
        f"base-{shots}".lower(),
        built.base,
        questions,
        CPU,
        rendering=stage.rendering,
        shots=shots,
        on_progress=lambda done, total: told.append((done, total)),
    )
    replies = read_replies(built.folder(manifest))
    asked = read_questions(built.folder(questions))
    assert [reply.question for reply in replies] == [question.question for question in asked]
    assert all(0 < reply.reply_tokens <= evaluation.max_new_tokens for reply in replies)
    assert told[-1] == (6, 6)
    assert (manifest.counts["trained"]["accuracy"]["n"], manifest.counts["unseen"]["accuracy"]["n"]) == (4, 2)
    assert manifest.counts["trained"]["well_formed"]["mean"] == 0.0, "random weights never think"


def test_what_is_asked_and_how_is_the_identity_of_replies_and_nothing_else(built: Any, evaluation: Evaluation, questions: Manifest):
    rendering = built.recipe.stages[0].rendering

    def fingerprint(**changes: Any) -> str:
        chosen = {"evaluation": evaluation, "checkpoint": built.base, "rendering": rendering, "shots": False, **changes}
        return replies_spec(
            built.recipe,
            chosen["evaluation"],
            "base",
            chosen["checkpoint"],
            questions,
            chosen["rendering"],
            shots=chosen["shots"],
        ).fingerprint

    others = [
        fingerprint(shots=True),
        fingerprint(evaluation=evaluation.model_copy(update={"max_new_tokens": 13})),
        fingerprint(evaluation=evaluation.model_copy(update={"precision": "bf16"})),
        fingerprint(rendering=rendering.model_copy(update={"system_prompt": "You think."})),
        fingerprint(checkpoint=built.base.model_copy(update={"fingerprint": "ff" * 32})),
    ]
    assert len({fingerprint(), *others}) == 6
    assert fingerprint(rendering=rendering.model_copy(update={"max_length": 9})) == fingerprint()


def test_held_out_rows_of_an_sft_stage_are_scored_under_both_checkpoints(built: Any):
    stage = built.stages["stage2_sft_think"]
    start = make_start(built.store, built.recipe, stage.stage, stage.dataset, built.base)
    manifest = score_held_out(
        built.store, built.recipe, stage.stage, start, start, stage.dataset, CPU, on_progress=lambda done, total: None
    )
    found = read_held_out(built.folder(manifest))
    assert found.loss.rows == stage.dataset.counts["held_out_rows"] == 6
    assert found.loss.loss == pytest.approx(found.loss.loss_at_start), "the same checkpoint"
    assert found.loss.loss_outside_new_tokens is not None
    assert found.loss.loss_outside_new_tokens > 4, "random weights"
    assert found.preferences == []


def test_held_out_pairs_are_scored_by_kind_of_fault(built: Any):
    stage = built.stages["stage3_dpo"]
    thinking = built.stages["stage2_sft_think"]
    start = make_start(built.store, built.recipe, thinking.stage, thinking.dataset, built.base)
    manifest = score_held_out(
        built.store, built.recipe, stage.stage, start, start, stage.dataset, CPU, on_progress=lambda done, total: None
    )
    found = read_held_out(built.folder(manifest))
    assert (found.loss.loss, found.loss.loss_at_start) == (pytest.approx(1.0), 1.0)
    assert {"seen", "unseen", "misread"} <= {each.fault for each in found.preferences}
    assert {each.length_accuracy.mean for each in found.preferences} == {0.5}, "both replies of a pair are alike in length"


def test_another_start_or_dataset_is_another_score(built: Any, changed_recipe: Callable[..., Recipe]):
    stage = built.stages["stage3_dpo"]
    other = built.base.model_copy(update={"fingerprint": "ff" * 32})
    spec = held_out_spec(built.recipe, stage.stage, built.base, built.base, stage.dataset)
    assert spec.fingerprint != held_out_spec(built.recipe, stage.stage, built.base, other, stage.dataset).fingerprint
    assert spec.fingerprint != held_out_spec(built.recipe, stage.stage, built.base, built.base, other).fingerprint
    recipe = changed_recipe(**{"stages.2.training.beta": 0.5})
    assert spec.fingerprint != held_out_spec(recipe, recipe.stages[2], built.base, built.base, stage.dataset).fingerprint
    assert replace(spec, recipe={}).fingerprint == spec.fingerprint
