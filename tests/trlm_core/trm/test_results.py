"""The evaluation's files: what is read is what was measured."""

import torch
from safetensors.torch import load_file

from tests.trlm_core.conftest import BuiltTRM
from trlm_core.trm.latent_checkpoint import WEIGHTS
from trlm_core.trm.material import Material
from trlm_core.trm.results import halting_curve, read_evaluation, read_examples, read_halting, thinkers_of


def test_every_row_of_the_recipe_is_there_with_its_cost(built_trm: BuiltTRM):
    evaluation = read_evaluation(built_trm.folder("evaluation"))
    assert [row.name for row in evaluation.rows] == [
        "direct", "text", "text_oracle", "oracle_latents", "pre_latents", "mean_latent", "pause", "nonrecursive",
        "phase2/1", "phase2/2", "phase2/3", "trm/1", "trm/2", "trm/3", "trm/halting", "direct_tuned",
    ]  # fmt: skip
    assert all(row.flops > 0 and row.generated_token_equivalents > 0 for row in evaluation.rows)
    assert built_trm.made["evaluation"].counts["exact"] == {row.name: row.exact for row in evaluation.rows}


def test_each_row_is_asked_of_its_own_phase(built_trm: BuiltTRM):
    """The last phase has adapters, and a compressor that phase 3 has moved."""
    thinkers = thinkers_of(Material(built_trm.store, built_trm.recipe, built_trm.made, "cpu"))
    assert thinkers.phase2 is not None
    assert [each.config.lora is None for each in (thinkers.first, thinkers.phase2, thinkers.last)] == [True, True, False]
    assert thinkers.phase2.base is thinkers.first.base, "one language model in memory"
    assert thinkers.last.base is not thinkers.first.base, "adapters are put into it in place"
    for role, model in {"phase1": thinkers.first, "phase2": thinkers.phase2, "phase3": thinkers.last}.items():
        weights = load_file(built_trm.folder(role) / WEIGHTS)
        assert all(torch.equal(weight, weights[name]) for name, weight in model.thinker.state_dict().items())


def test_the_evaluation_names_the_phases_that_it_asks(built_trm: BuiltTRM):
    inputs = built_trm.made["evaluation"].inputs
    assert {role: inputs[role] for role in ("phase1", "phase2")} == {
        role: built_trm.made[role].fingerprint for role in ("phase1", "phase2")
    }


def test_the_halting_curve_never_falls_and_has_a_point_a_step(built_trm: BuiltTRM):
    points = read_halting(built_trm.folder("evaluation"))
    assert [point.step for point in points] == [1, 2, 3]
    assert points[0].halted <= points[1].halted <= points[2].halted
    assert all(0 < point.p_halt < 1 for point in points)


@torch.no_grad()
def test_the_halting_curve_counts_a_row_from_its_first_content_step_on(built_trm: BuiltTRM):
    material = Material(built_trm.store, built_trm.recipe, built_trm.made, "cpu")
    model, table = material.model("phase2"), material.table("validation", 4)
    bias = model.thinker.trm.core.halt_head.bias
    bias.fill_(-50.0)
    assert [point.halted for point in halting_curve(model, table, 3)] == [0.0, 0.0, 0.0]
    bias.fill_(50.0)
    assert [point.halted for point in halting_curve(model, table, 3)] == [1.0, 1.0, 1.0]


def test_examples_are_the_first_of_the_split_with_thought_and_answer_a_step(built_trm: BuiltTRM):
    examples = read_examples(built_trm.folder("evaluation"))
    material = Material(built_trm.store, built_trm.recipe, built_trm.made, "cpu")
    assert [example.prompt for example in examples] == [each.prompt for each in material.examples("validation")[:8]]
    assert all([step.step for step in example.steps] == [1, 2, 3] for example in examples)
    assert all(step.thought.startswith("_") for example in examples for step in example.steps)
    assert all(step.right == (step.answer == example.wanted) for example in examples for step in example.steps)
