"""What a change of a TRM recipe builds anew, and what it does not."""

import pytest

from tests.trlm_core.trm.tiny_recipe import tiny_trm_recipe
from trlm_core.recipes.trm_load import load_trm_recipe
from trlm_core.trm.specs import phases_of
from trlm_core.trm_lineage import TRMLineage

ROLES = [
    "thoughts", "base", "states", "phase1", "nonrecursive", "pause", "direct_tuned", "phase2", "phase2b", "phase3",
    "phase1-measured", "phase2-measured", "phase2b-measured", "phase3-measured", "evaluation",
]  # fmt: skip
AFTER_PHASE_2 = {"phase2", "phase2b", "phase3", "phase2-measured", "phase2b-measured", "phase3-measured", "evaluation"}
MEASURED = {role for role in ROLES if role.endswith("-measured")}
CHANGES = {
    "the seed of the trainings": ("seed", 1, set(ROLES) - {"thoughts"}),
    "phase 1's rate": ("phase1.training.learning_rate", 0.1, set(ROLES) - {"thoughts", "base", "states", "direct_tuned"}),
    "phase 1's gate": ("phase1.oracle_over_text", 0.5, {"phase1-measured"}),
    "phase 2's steps": ("phase2.training.steps", 13, AFTER_PHASE_2),
    "phase 2's gate": ("phase2.gate", {"over_direct": 0.0, "over_nonrecursive": 0.0, "best_over_first_step": 0.0}, {"phase2-measured"}),
    "n, which the twin without recursion has not": ("model.n_latent_steps", 5, AFTER_PHASE_2),
    "the layers, which the twin has": ("model.n_layers", 2, AFTER_PHASE_2 | {"nonrecursive"}),
    "the norm of the net, which the twin has": ("model.norm", "pre", AFTER_PHASE_2 | {"nonrecursive"}),
    "the statistics of latents": ("model.latent_norm", False, AFTER_PHASE_2 | {"nonrecursive"}),
    "slot embeddings": ("model.slot_embeddings", False, AFTER_PHASE_2 | {"nonrecursive"}),
    "phase 3's steps": ("phase3.training.steps", 2, {"phase3", "phase3-measured", "evaluation"}),
    "the least steps, which the twin of one step has not": ("phase2.min_steps", 2, AFTER_PHASE_2),
    "the steps that are asked, which phase 1 has not": ("evaluation.steps", [1, 3], MEASURED - {"phase1-measured"} | {"evaluation"}),
    "a control": ("controls.pause.steps", 4, {"pause", "evaluation"}),
    "whether a gate stops": ("gates", "stop", set()),
}


def fingerprints(**changes: object) -> dict[str, str]:
    return {role: spec.fingerprint for role, spec in TRMLineage(tiny_trm_recipe(**changes)).specs.items()}


def test_the_roles_are_in_the_order_in_which_they_are_made():
    assert list(fingerprints()) == ROLES


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_rebuilds_what_is_made_of_it_and_nothing_else(case: str):
    key, value, rebuilt = CHANGES[case]
    before, after = fingerprints(), fingerprints(**{key: value})
    assert {role for role in ROLES if before[role] != after[role]} == rebuilt


def test_a_phase_that_a_recipe_has_not_has_no_artifact():
    roles = fingerprints(phase2b=None, phase3=None)
    assert set(ROLES) - set(roles) == {"phase2b", "phase3", "phase2b-measured", "phase3-measured"}


@pytest.mark.parametrize(("name", "first"), [("trm-acceptance", "thoughts"), ("trm-smollm2-135m", "base"), ("trm-smollm3-3b", "base")])
def test_a_base_comes_before_its_own_traces_and_after_thoughts_that_it_is_trained_on(name: str, first: str):
    lineage = TRMLineage(load_trm_recipe(name))
    assert next(iter(lineage.specs)) == first
    assert set(phases_of(lineage.recipe)) <= set(lineage.specs)
