"""The report of a TRM run as an artifact: report.html, results.json (every number)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.reports.html import Fact, Section, rendered
from trlm_core.reports.record_tables import artifact_cells, leaf_table
from trlm_core.reports.table import Cell, Table
from trlm_core.reports.trm_figures import CURVES, accuracy_figure, halting_figure, role_label, training_curves
from trlm_core.reports.trm_results import TRMResults
from trlm_core.reports.trm_tables import ablation_table, gate_table, row_label, row_table, size_table, training_table
from trlm_core.training.checkpoint import read_history
from trlm_core.trm.evaluate import TRM, Evaluation, EvaluationRow, best_step, steps_of
from trlm_core.trm.latent_example import LatentExample
from trlm_core.trm.results import HaltingPoint, read_evaluation, read_examples, read_halting
from trlm_core.trm.specs import last_phase, measured_role, phases_of

PAGE, RESULTS = "report.html", "results.json"
ROWS_TEXT = (
    "The language model is the same in every row but the one that says fine-tuned and, after a phase 2b, the TRM's own, where it has "
    "adapters. The TRM's rows differ by supervision steps alone; where phases came after phase 2, those of phase 2 are beside them: the "
    "twin without recursion has had no other. Every accuracy has its cost beside it."
)
CURVES_TEXT = (
    "The thin line is the value of each optimizer step (of long trainings, the mean of a stretch), the thick line its moving mean."
)
EXAMPLES_TEXT = (
    "The first of the split: not chosen for how they look. A thought is read out of its latents by the expander and the language model's "
    "head; its first token is not among them and stands as _."
)


@dataclass(frozen=True)
class _Numbers:
    evaluation: Evaluation
    halting: list[HaltingPoint]
    examples: list[LatentExample]
    ablations: dict[str, Evaluation]
    measured: dict[str, Manifest]  # phase -> its measurement
    best_step: int  # of the last phase's TRM, as its measurement on validation says

    @classmethod
    def read(cls, store: Store, results: TRMResults) -> "_Numbers":
        folder = store.folder(results.made["evaluation"])
        return cls(
            evaluation=read_evaluation(folder),
            halting=read_halting(folder),
            examples=read_examples(folder),
            ablations={label: read_evaluation(store.folder(manifest)) for label, manifest in results.ablations.items()},
            measured={phase: results.made[measured_role(phase)] for phase in phases_of(results.recipe)},
            best_step=best_step(read_evaluation(store.folder(results.made[measured_role(last_phase(results.recipe))]))),
        )

    @property
    def claims(self) -> list[dict[str, Any]]:
        return [{"phase": phase, **claim} for phase, manifest in self.measured.items() for claim in manifest.counts["claims"]]


def trm_report_spec(results: TRMResults) -> Spec:
    recipe = results.recipe.model_dump(mode="json")
    inputs = {role: manifest.fingerprint for role, manifest in results.made.items()}
    inputs |= {f"ablation {label}": manifest.fingerprint for label, manifest in results.ablations.items()}
    return Spec("reports", results.recipe.name, "report", {"made_by": "trm_report/2", "recipe": recipe}, inputs, recipe)


def write_trm_report(store: Store, results: TRMResults) -> Manifest:
    """Reused where nothing that it is made from has changed."""

    def build(folder: Path) -> dict[str, Any]:
        numbers = _Numbers.read(store, results)
        page = rendered(results.recipe, headline(results, numbers), sections(store, results, numbers))
        (folder / PAGE).write_text(page, encoding="utf-8")
        (folder / RESULTS).write_text(json.dumps(as_tree(numbers), indent=1), encoding="utf-8")
        claims = numbers.claims
        return {"gates": len(claims), "gates_held": sum(claim["holds"] for claim in claims)}

    return store.make(trm_report_spec(results), build)


def as_tree(numbers: _Numbers) -> dict[str, Any]:
    return {
        "claims": numbers.claims,
        "evaluation": asdict(numbers.evaluation),
        "halting": [asdict(point) for point in numbers.halting],
        "ablations": {label: asdict(each) for label, each in numbers.ablations.items()},
        "measured": {phase: manifest.counts for phase, manifest in numbers.measured.items()},
    }


def headline(results: TRMResults, numbers: _Numbers) -> list[Fact]:
    rows = {row.name: row for row in numbers.evaluation.rows}
    facts = [Fact("claims of gates that hold", f"{sum(claim['holds'] for claim in numbers.claims)} of {len(numbers.claims)}")]
    facts += trm_facts(rows, results.recipe.model.n_supervision_steps, numbers.best_step)
    facts += [
        Fact(words, f"{100 * rows[name].exact:.1f}%")
        for name, words in (("direct", "no thought"), ("oracle_latents", "ceiling"))
        if name in rows
    ]
    created = max(manifest.created for manifest in results.made.values())
    return [*facts, Fact("split", results.recipe.evaluation.split), Fact("date", f"{created:%Y-%m-%d}", "of the evaluation")]


def trm_facts(rows: Mapping[str, EvaluationRow], exported: int, best: int) -> list[Fact]:
    """After as many supervision steps as it is exported with, and as many as were best on validation: none is chosen on what is shown."""
    chosen = {exported: "as it is exported"} | ({} if best == exported else {best: "best on validation"})
    named = [(rows.get(f"{TRM}/{steps}"), why) for steps, why in chosen.items()]
    return [
        Fact(row_label(row.name), f"{100 * row.exact:.1f}%", f"± {100 * row.standard_error:.1f}, {why}")
        for row, why in named
        if row is not None
    ]


def sections(store: Store, results: TRMResults, numbers: _Numbers) -> list[Section]:
    """In order, the empty ones too."""
    evaluation, recipe = numbers.evaluation, results.recipe
    figures = [halting_figure(2, numbers.halting)]
    if steps_of(evaluation):
        figures.insert(0, accuracy_figure(1, evaluation))
    histories = {role: read_history(store.folder(manifest)) for role, manifest in results.made.items() if role in CURVES}
    return [
        Section("gates", "Gates", tables=(gate_table(numbers.measured),)),
        Section("steps", "Accuracy and halting by supervision step", curves=tuple(figures)),
        Section(
            "rows",
            "Results",
            ROWS_TEXT,
            tables=(row_table(evaluation, recipe.evaluation.split), training_table(recipe), size_table(evaluation)),
        ),
        Section("ablations", "Ablations", tables=(ablation_table(numbers.ablations),)),
        Section("curves", "Training curves", CURVES_TEXT, curves=tuple(training_curves(3, histories))),
        Section("examples", "Examples", EXAMPLES_TEXT, latent_examples=tuple(numbers.examples)),
        Section("settings", "Settings", tables=(leaf_table("The recipe.", recipe.model_dump(mode="json")),)),
        Section("artifacts", "Artifacts", tables=(_artifact_table(results),)),
    ]


def _artifact_table(results: TRMResults) -> Table:
    rows = tuple((Cell(role_label(role)), *artifact_cells(manifest)) for role, manifest in results.made.items())
    caption = "Addresses are below the store; a fingerprint is the sha256 of what the artifact was made from."
    return Table(caption, ("artifact", "address", "fingerprint", "size", "build, s"), rows)
