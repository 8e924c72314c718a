"""Numbers by hand: rows, paired z, goals reached and missed, absent stages."""

import dataclasses
import math

from trlm_core.artifacts.store import Store
from trlm_core.reports.compare import comparisons, goals, percent, preference_rows, result_rows, stage_losses, subject_label
from trlm_core.reports.results import RunResults


def test_rows_stand_in_the_order_of_the_subjects(store: Store, results: RunResults) -> None:
    assert [row.label for row in result_rows(store, results)] == [
        "base",
        "base, few-shot",
        "stage 1",
        "stage 2 before training (tokens merely initialised)",
        "stage 2",
        "stage 3",
    ]


def test_a_row_keeps_trained_and_unseen_families_apart(store: Store, results: RunResults) -> None:
    row = result_rows(store, results)[4]
    assert (row.trained.mean, row.trained.n) == (0.75, 4)
    assert (row.unseen.mean, row.unseen.n) == (0.5, 2)
    assert {family: score.mean for family, score in row.families.items()} == {"chain_sum": 1.0, "gcd": 0.5, "lcm": 0.5}


def test_form_is_asked_of_every_reply_and_length_of_closed_thoughts_only(store: Store, results: RunResults) -> None:
    base, stage2 = (result_rows(store, results)[index] for index in (0, 4))
    assert (base.well_formed.mean, base.thought_words.n) == (0.0, 0)
    assert (round(stage2.well_formed.mean, 4), stage2.thought_words.mean) == (0.8333, 5.0)


def test_paired_z_is_as_worked_by_hand(store: Store, results: RunResults) -> None:
    # stage 2 less few-shot base, on the trained families: 1, 1, 0, 0; mean 1/2, variance 1/3, error sqrt(1/12), z sqrt(3)
    first = comparisons(store, results)[0]
    assert (first.subject, first.against, first.n) == ("stage2_sft_think", "base-few-shot", 4)
    assert first.difference.mean == 0.5
    assert math.isclose(first.difference.standard_error, 0.28867513459481287)
    assert math.isclose(first.difference.z, 1.7320508075688772)


def test_stages_2_and_3_are_compared_with_everything_before(store: Store, results: RunResults) -> None:
    assert [(each.subject, each.against) for each in comparisons(store, results)] == [
        ("stage2_sft_think", "base-few-shot"),
        ("stage2_sft_think", "base"),
        ("stage2_sft_think", "stage1_sft"),
        ("stage3_dpo", "base-few-shot"),
        ("stage3_dpo", "base"),
        ("stage3_dpo", "stage1_sft"),
        ("stage3_dpo", "stage2_sft_think"),
    ]


def test_goals_are_listed_whether_reached_or_not(store: Store, results: RunResults) -> None:
    assert [(goal.name, goal.reached) for goal in goals(store, results)] == [
        ("stage 2: replies are well formed", False),  # 5 of 6
        ("stage 3: replies are well formed", True),
        ("stage 1: held-out loss falls", False),  # 1.6 to 1.9
        ("stage 2: held-out loss falls", True),
        ("stage 3: held-out loss falls", True),
        ("stage 3: preference accuracy on unseen faults", True),  # 75 % against 70
        ("stage 3: preference accuracy on unseen faults", False),  # the start's own log-probs reach 87.5 %
        ("stage 3: preference accuracy on unseen faults", True),  # length only: 50 %
        ("stage 2: accuracy above base, few-shot", True),
        ("stage 2: accuracy above stage 1", True),
        ("stage 3: accuracy above base, few-shot", True),
        ("stage 3: accuracy above stage 1", True),
    ]


def test_accuracy_is_no_goal_where_the_recipe_claims_none(store: Store, results: RunResults) -> None:
    evaluation = results.recipe.evaluation
    assert evaluation is not None
    modest = evaluation.model_copy(update={"goals": evaluation.goals.model_copy(update={"z": None})})
    changed = dataclasses.replace(results, recipe=results.recipe.model_copy(update={"evaluation": modest}))
    assert len(goals(store, changed)) == 8


def test_a_stage_that_did_not_run_has_no_row_and_no_goal(store: Store, without_stage3: RunResults) -> None:
    assert "stage3_dpo" not in {row.subject for row in result_rows(store, without_stage3)}
    assert [each.stage for each in stage_losses(store, without_stage3)] == ["stage1_sft", "stage2_sft_think"]
    assert {each.subject for each in comparisons(store, without_stage3)} == {"stage2_sft_think"}
    assert preference_rows(store, without_stage3) == []
    assert not [goal for goal in goals(store, without_stage3) if "stage 3" in goal.name]


def test_preferences_say_which_faults_no_stage_trains_on(store: Store, results: RunResults) -> None:
    assert [(row.scores.fault, row.unseen) for row in preference_rows(store, results)] == [
        ("unseen", True),
        ("seen", False),
        ("misread", True),
    ]


def test_a_start_is_named_as_merely_initialised() -> None:
    assert subject_label("stage2_sft_think-start") == "stage 2 before training (tokens merely initialised)"


def test_percent_shows_error_and_count(store: Store, results: RunResults) -> None:
    assert percent(result_rows(store, results)[4].trained) == "75.0% ± 25.0 (n = 4)"
