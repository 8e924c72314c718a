"""What a TRM recipe's last checkpoint is worth: every row of the evaluation, its halting curve, examples with thoughts step by step.

evals/trm-acceptance/evaluation/: evaluation.json, halting.json, examples.jsonl
halting.json: [{"step": 1, "p_halt": 0.31, "halted": 0.27}, ...]
examples.jsonl: {"prompt": "<s>03...<think>", "wanted": "12...</s>", "steps": [{"step": 1, "p_halt": 0.2, "thought": "_2...", ...}]}
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.trm_schema import TRMRecipe
from trlm_core.training.checkpoint import append_line, read_lines
from trlm_core.trm.answers import Writing, exact, write_answers
from trlm_core.trm.evaluate import Evaluation, EvaluationRow, OnRow, Rivals, Thinkers, evaluate, steps_asked
from trlm_core.trm.latent_checkpoint import load_latent_checkpoint
from trlm_core.trm.latent_example import ExampleStep, LatentExample
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.material import Material, usable_device
from trlm_core.trm.phase_checkpoints import read_pauses
from trlm_core.trm.phase_models import base_of
from trlm_core.trm.phase_rows import RowTable
from trlm_core.trm.specs import Phase, evaluation_spec, last_phase
from trlm_core.trm.thought_reading import read_thoughts_out, thought_steps

EVALUATION, HALTING, EXAMPLES = "evaluation.json", "halting.json", "examples.jsonl"
NUM_EXAMPLES = 8  # the first of the split: not chosen for how they look


@dataclass(frozen=True)
class HaltingPoint:
    """Means over the examples, none of which halts."""

    step: int
    p_halt: float
    halted: float  # share whose head would have been content at this step or before


def make_evaluation(store: Store, recipe: TRMRecipe, made: Mapping[str, Manifest], execution: Execution, on_row: OnRow) -> Manifest:
    def build(folder: Path) -> dict[str, Any]:
        material = Material(store, recipe, made, usable_device(execution))
        thinkers, table = thinkers_of(material), material.table(recipe.evaluation.split, recipe.evaluation.examples)
        evaluation = evaluate(thinkers, table, recipe.evaluation, rivals(material), on_row)
        write_json(asdict(evaluation), folder / EVALUATION)
        model, steps = thinkers.last, _steps(recipe)
        write_json([asdict(point) for point in halting_curve(model, table, max(steps))], folder / HALTING)
        for example in latent_examples(material, model):
            append_line(folder / EXAMPLES, asdict(example))
        return {"examples": evaluation.examples, "exact": {row.name: row.exact for row in evaluation.rows}}

    return store.make(evaluation_spec(recipe, made), build)


def read_evaluation(folder: Path) -> Evaluation:
    tree = json.loads((folder / EVALUATION).read_text())
    return Evaluation(**{**tree, "rows": tuple(EvaluationRow(**row) for row in tree["rows"])})


def read_halting(folder: Path) -> list[HaltingPoint]:
    return [HaltingPoint(**point) for point in json.loads((folder / HALTING).read_text())]


def read_examples(folder: Path) -> list[LatentExample]:
    return [
        LatentExample(line["prompt"], line["wanted"], tuple(ExampleStep(**step) for step in line["steps"]))
        for line in read_lines(folder / EXAMPLES)
    ]


def write_json(tree: Any, path: Path) -> None:
    path.write_text(json.dumps(tree, indent=1) + "\n")


def thinkers_of(material: Material) -> Thinkers:
    """On one language model in memory, but where phase 2b puts adapters into it."""
    recipe, first = material.recipe, material.model("phase1")

    def on_the_same(phase: Phase) -> LatentThoughtModel:
        return load_latent_checkpoint(material.folder(phase), first.base).to(material.device)  # type: ignore[arg-type]

    last = last_phase(recipe)
    return Thinkers(
        first=first,
        phase2=None if last == "phase2" else on_the_same("phase2"),
        last=on_the_same(last) if recipe.phase2b is None else material.model(last),
    )


def rivals(material: Material) -> Rivals:
    """The controls that the recipe trains, each on a language model of its own."""
    controls, direct_tuned = material.recipe.controls, None
    if controls.direct_tuned is not None:
        direct_tuned = base_of(material.store, material.recipe, material.made["direct_tuned"], material.device)
    return Rivals(
        nonrecursive=material.model("nonrecursive") if controls.nonrecursive is not None else None,
        pauses_1MD=read_pauses(material.folder("pause")).to(material.device) if controls.pause is not None else None,
        direct_tuned=direct_tuned,
    )


@torch.no_grad()
def halting_curve(model: LatentThoughtModel, table: RowTable, steps: int) -> list[HaltingPoint]:
    q_logits = []
    for _, batch in table.batches():
        batch = batch.to(model.thinker.trm.slots_Md.device)
        prompt = model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
        q_logits.append(model.think(prompt, steps, halting=False).q_logits_BS)
    q_logits_NS = torch.cat(q_logits)
    halted_NS = (q_logits_NS > 0).cummax(dim=1).values
    return [
        HaltingPoint(step + 1, q_logits_NS[:, step].sigmoid().mean().item(), halted_NS[:, step].float().mean().item())
        for step in range(steps)
    ]


@torch.no_grad()
def latent_examples(material: Material, model: LatentThoughtModel) -> list[LatentExample]:
    """Thought and answer after each of the recipe's supervision steps."""
    asked, shown = material.recipe.evaluation, _steps(material.recipe)
    examples = material.examples(asked.split)[:NUM_EXAMPLES]
    table = RowTable.of([example.row for example in examples], material.tokens)
    batch = table.batch(range(len(table))).to(material.device)
    prompt = model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
    steps: list[list[ExampleStep]] = [[] for _ in examples]
    for number, thought in enumerate(thought_steps(model, prompt, max(shown)), start=1):
        if number not in shown:
            continue
        u_BMD = model.thinker.embed_thought(thought.v_BMd)
        answers = write_answers(model, prompt, u_BMD, Writing(asked.max_new_tokens, temperature=None))
        texts = read_thoughts_out(model, thought.v_BMd, batch.thought_mask_BC, material.tokenizer)
        right, p_halt_B = exact(answers, table.rows), thought.q_logits_B.sigmoid().tolist()
        for row, answer in enumerate(answers):
            step = ExampleStep(number, p_halt_B[row], texts[row], str(material.tokenizer.decode(list(answer))), right[row])
            steps[row].append(step)
    return [LatentExample(each.prompt, each.answer, tuple(taken)) for each, taken in zip(examples, steps, strict=True)]


def _steps(recipe: TRMRecipe) -> tuple[int, ...]:
    return steps_asked(recipe.evaluation, recipe.model.n_supervision_steps)
