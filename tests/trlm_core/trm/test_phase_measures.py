"""What a phase reached, in the counts of a measurement, and the gate that reads them."""

from dataclasses import asdict

import pytest

from tests.trlm_core.conftest import BuiltTRM
from tests.trlm_core.trm.tiny_recipe import CPU, tiny_trm_recipe
from trlm_core.artifacts.manifest import Manifest
from trlm_core.recipes.trm_schema import Sudoku4Prompts
from trlm_core.trm.evaluate import Claim
from trlm_core.trm.material import Material
from trlm_core.trm.phase_measures import GateError, check_gate, make_measure, mean_reward

CLAIMS = {
    "phase1-measured": ["oracle_over_text"],
    "phase2-measured": ["over_direct", "over_nonrecursive", "best_over_first_step"],
    "phase2b-measured": [],
    "phase3-measured": ["reward_gain", "accuracy_gain"],
}


def with_claims(measured: Manifest, **got: float) -> Manifest:
    claims = [{"name": name, "wanted": 0.1, "got": value, "holds": value >= 0.1} for name, value in got.items()]
    return measured.model_copy(update={"counts": {**measured.counts, "claims": claims}})


@pytest.mark.parametrize("role", CLAIMS)
def test_the_counts_have_every_claim_with_what_was_wanted_and_got(built_trm: BuiltTRM, role: str):
    claims = built_trm.made[role].counts["claims"]
    assert [claim["name"] for claim in claims] == CLAIMS[role]
    assert all(claim["holds"] == (claim["got"] >= claim["wanted"] and claim["got"] > 0) for claim in claims)


def test_claims_are_differences_of_the_rows(built_trm: BuiltTRM):
    counts = built_trm.made["phase2-measured"].counts
    over_direct, over_twin, best = (claim["got"] for claim in counts["claims"])
    exact = counts["exact"]
    assert set(exact) == {"direct", "nonrecursive", "trm/1", "trm/2", "trm/3"}, "3 steps are what it is exported with"
    assert over_direct == exact["trm/3"] - exact["direct"]
    assert over_twin == exact["trm/3"] - exact["nonrecursive"]
    assert best == max(exact["trm/1"], exact["trm/2"], exact["trm/3"]) - exact["trm/1"]


def test_a_gate_that_does_not_hold_says_what_was_wanted_and_got(built_trm: BuiltTRM):
    measured = with_claims(built_trm.made["phase2-measured"], over_direct=0.04, over_nonrecursive=0.2)
    with pytest.raises(GateError, match=r"gate of phase2 .*over_direct: wanted at least 0\.100, got 0\.040; its checkpoint stays"):
        check_gate(tiny_trm_recipe(gates="stop"), "phase2", measured)


def test_a_phase_that_changes_nothing_does_not_pass_a_gate_that_wants_more_than_nothing(built_trm: BuiltTRM):
    recipe = tiny_trm_recipe(gates="stop")
    assert recipe.phase3 is not None
    assert recipe.phase3.gate.reward_gain == 0.0
    claims = [asdict(Claim("reward_gain", 0.0, 0.0)) | {"holds": Claim("reward_gain", 0.0, 0.0).holds}]
    measured = built_trm.made["phase3-measured"]
    with pytest.raises(GateError, match=r"reward_gain: wanted more than 0\.000, got 0\.000"):
        check_gate(recipe, "phase3", measured.model_copy(update={"counts": {**measured.counts, "claims": claims}}))


def test_adapters_are_measured_without_a_thought_too(built_trm: BuiltTRM):
    counts = built_trm.made["phase2b-measured"].counts
    assert set(counts["metrics"]) >= {"exact_adapted_direct"}
    assert counts["exact"]["direct"] == built_trm.made["phase2-measured"].counts["exact"]["direct"], "of the language model as it was"


def test_a_gate_that_holds_is_passed(built_trm: BuiltTRM):
    check_gate(tiny_trm_recipe(gates="stop"), "phase2", with_claims(built_trm.made["phase2-measured"], over_direct=0.1))


def test_a_recipe_that_only_reports_passes_any_gate(built_trm: BuiltTRM):
    check_gate(tiny_trm_recipe(gates="report"), "phase2", with_claims(built_trm.made["phase2-measured"], over_direct=-1.0))


def test_without_the_twin_there_is_no_claim_over_it(built_trm: BuiltTRM):
    controls = {**built_trm.recipe.controls.model_dump(mode="json"), "nonrecursive": None}
    rows = [row for row in built_trm.recipe.evaluation.rows if row != "nonrecursive"]
    recipe = tiny_trm_recipe(**{"controls": controls, "evaluation.rows": rows})
    made = {role: built_trm.made[role] for role in ("base", "thoughts", "phase2")}
    measured = make_measure(built_trm.store, recipe, "phase2", made, CPU, lambda row, left: None)
    assert [claim["name"] for claim in measured.counts["claims"]] == ["over_direct", "best_over_first_step"]


def test_phase_3_asks_its_own_prompts_where_it_has_some_and_else_those_of_train(built_trm: BuiltTRM):
    material, phase3 = Material(built_trm.store, built_trm.recipe, built_trm.made, "cpu"), built_trm.recipe.phase3
    assert phase3 is not None
    own = phase3.model_copy(update={"prompts": Sudoku4Prompts(seed=1, givens=(5,), puzzles=20)})
    assert len(material.prompts(own)) == 20
    train = material.prompts(phase3.model_copy(update={"prompts": None}))
    assert [*train.rows] == [*material.table("train").rows]


def test_the_mean_reward_is_drawn_the_same_each_time(built_trm: BuiltTRM):
    material = Material(built_trm.store, built_trm.recipe, built_trm.made, "cpu")
    model, table, phase3 = material.model("phase3"), material.table("validation", 4), built_trm.recipe.phase3
    assert phase3 is not None
    first = mean_reward(material, model, table, phase3)
    assert first == mean_reward(material, model, table, phase3)
    assert 0 <= first <= 1.6, "exact 1, well formed 0.1, in part 0.5"
