"""What a phase reached on the validation split, and its gate: {"exact": {"direct": 0.43}, "claims": [{"name", "wanted", "got", "holds"}]}.

    phase1     the right thought in latents is worth nearly as much as in text
    phase2     the TRM helps: over no thought, over its twin without recursion, and its best step over its first
    phase3     reward and accuracy over what they were before it
Choices are made on validation, whatever split the recipe's own evaluation reads.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.data.split import seed_of
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.trm_schema import Phase3, RowName, TRMEvaluation, TRMRecipe
from trlm_core.trm.answers import Writing, chosen, longest_answer, write_answers
from trlm_core.trm.evaluate import TRM, Claim, Evaluation, OnRow, Rivals, Thinkers, at_least, best_step, claims, evaluate
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.material import Material, usable_device
from trlm_core.trm.phase1 import phase1_metrics
from trlm_core.trm.phase_module import seeded
from trlm_core.trm.phase_rows import RowTable, live_states
from trlm_core.trm.results import EVALUATION, write_json
from trlm_core.trm.rewards import group_rewards
from trlm_core.trm.specs import Phase, measure_spec, phase_before

NO_RIVALS = Rivals(nonrecursive=None, pauses_1MD=None, direct_tuned=None)


class GateError(ValueError):
    """A phase is not worth going on from; the message says what was wanted and what was got."""


@dataclass(frozen=True)
class _Measured:
    evaluation: Evaluation
    metrics: dict[str, float]
    claims: tuple[Claim, ...]


def make_measure(
    store: Store, recipe: TRMRecipe, phase: Phase, made: Mapping[str, Manifest], execution: Execution, on_row: OnRow
) -> Manifest:
    """Its counts are what `check_gate` reads."""

    def build(folder: Path) -> dict[str, Any]:
        material = Material(store, recipe, made, usable_device(execution))
        measure = {"phase1": _phase1, "phase2": _phase2, "phase2b": _phase2b, "phase3": _phase3}[phase]
        measured = measure(material, on_row)
        write_json(asdict(measured.evaluation), folder / EVALUATION)
        return {
            "examples": measured.evaluation.examples,
            "exact": {row.name: row.exact for row in measured.evaluation.rows},
            "metrics": measured.metrics,
            "claims": [{**asdict(claim), "holds": claim.holds} for claim in measured.claims],
        }

    return store.make(measure_spec(recipe, phase, made), build)


def check_gate(recipe: TRMRecipe, phase: Phase, measured: Manifest) -> None:
    """Raises GateError for a claim that does not hold, unless the recipe only reports them."""
    failed = [claim for claim in measured.counts["claims"] if not claim["holds"]]
    if failed and recipe.gates == "stop":
        words = "; ".join(f"{each['name']}: wanted {at_least(each['wanted'])}, got {each['got']:.3f}" for each in failed)
        advice = f"its checkpoint stays; train {phase} longer, or set gates: report to go on all the same"
        raise GateError(f"gate of {phase} ({measured.counts['examples']:,} examples of validation, {measured.address}): {words}; {advice}")


def _phase1(material: Material, on_row: OnRow) -> _Measured:
    model, table, recipe = material.model("phase1"), _validation(material), material.recipe
    evaluation = evaluate(Thinkers.alone(model), table, _asked(material, "direct", "text", "text_oracle"), NO_RIVALS, on_row)
    metrics = asdict(phase1_metrics(model, table, live_states(model)))
    wanted = recipe.phase1.oracle_over_text * evaluation.exact("text")
    return _Measured(evaluation, metrics, (Claim("oracle_over_text", wanted, metrics["oracle_accuracy"]),))


def _phase2(material: Material, on_row: OnRow) -> _Measured:
    recipe = material.recipe
    twin = material.model("nonrecursive") if recipe.controls.nonrecursive is not None else None
    rows: list[RowName] = ["direct", *(["nonrecursive"] if twin else []), "trm"]  # type: ignore[list-item]
    thinkers = Thinkers.alone(material.model("phase2"))
    evaluation = evaluate(thinkers, _validation(material), _asked(material, *rows), Rivals(twin, None, None), on_row)
    made = claims(evaluation, recipe.phase2.gate, recipe.model.n_supervision_steps, best_step(evaluation))
    return _Measured(evaluation, _halting(evaluation), made)


def _phase2b(material: Material, on_row: OnRow) -> _Measured:
    """Its adapters may have learned the task, and not to read latents: they are asked without a thought too."""
    model, table = material.model("phase2b"), _validation(material)
    thinkers = Thinkers(first=material.model("phase1"), phase2=None, last=model)
    evaluation = evaluate(thinkers, table, _asked(material, "direct", "trm"), NO_RIVALS, on_row)
    adapted = evaluate(Thinkers.alone(model), table, _asked(material, "direct"), NO_RIVALS, lambda row, left: None)
    return _Measured(evaluation, {"exact_adapted_direct": adapted.exact("direct")} | _halting(evaluation), ())


def _phase3(material: Material, on_row: OnRow) -> _Measured:
    recipe = material.recipe
    assert recipe.phase3 is not None
    before = material.model(phase_before(recipe, "phase3"))
    earlier, reward_before = _worth(material, before, recipe.phase3, lambda row, left: None)
    evaluation, reward = _worth(material, material.model("phase3"), recipe.phase3, on_row)
    row = f"{TRM}/{recipe.model.n_supervision_steps}"
    gained = (
        Claim("reward_gain", recipe.phase3.gate.reward_gain, reward - reward_before),
        Claim("accuracy_gain", recipe.phase3.gate.accuracy_gain, evaluation.exact(row) - earlier.exact(row)),
    )
    metrics = {"reward_before": reward_before, "reward": reward, "exact_before": earlier.exact(row)}
    return _Measured(evaluation, metrics | _halting(evaluation), gained)


def _worth(material: Material, model: LatentThoughtModel, phase3: Phase3, on_row: OnRow) -> tuple[Evaluation, float]:
    table = _validation(material)
    evaluation = evaluate(Thinkers.alone(model), table, _asked(material, "trm"), NO_RIVALS, on_row)
    return evaluation, mean_reward(material, model, table, phase3)


@torch.no_grad()
def mean_reward(material: Material, model: LatentThoughtModel, table: RowTable, phase3: Phase3) -> float:
    """Of a group of sampled answers a row; the same draws whichever model is asked."""
    writing, rewards = Writing(longest_answer(table.rows), phase3.temperature), []
    with seeded(seed_of(material.recipe.seed, "phase3/measured"), torch.device(material.device)):
        for numbers, batch in table.batches():
            batch = batch.to(material.device)
            prompt = model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
            u_BMD = model.think(prompt, halting=False).u_BMD
            group_B = torch.arange(len(batch), device=u_BMD.device).repeat_interleave(phase3.group_size)
            answers = write_answers(model, chosen(prompt, group_B), u_BMD[group_B], writing)
            rows = [table.rows[number] for number in numbers]
            rewards.append(group_rewards(phase3.rewards, answers, rows, material.is_well_formed()))
    return torch.cat(rewards).mean().item()


def _validation(material: Material) -> RowTable:
    return material.table("validation", material.recipe.evaluation.examples)


def _asked(material: Material, *rows: RowName) -> TRMEvaluation:
    return material.recipe.evaluation.model_copy(update={"split": "validation", "rows": rows, "halting": False})


def _halting(evaluation: Evaluation) -> dict[str, float]:
    return {f"halt_accuracy/{row.name}": row.halt_accuracy for row in evaluation.rows if row.halt_accuracy is not None}
