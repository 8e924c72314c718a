"""The report as one page: sections in order, set by templates/report.html.jinja; everything a model or a person wrote is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trlm_core.artifacts.store import Store
from trlm_core.recipes.schema import Recipe
from trlm_core.recipes.trm_schema import TRMRecipe
from trlm_core.reports.compare import STAGE_LABELS, Numbers
from trlm_core.reports.examples import Example, examples
from trlm_core.reports.figures import Curve, curves
from trlm_core.reports.record_tables import artifact_table, blend_tables, environment_tables, settings_tables
from trlm_core.reports.results import RunResults
from trlm_core.reports.score_tables import (
    comparison_table,
    family_table,
    goal_table,
    loss_table,
    preference_table,
    reached,
    result_table,
)
from trlm_core.reports.table import Table
from trlm_core.training.checkpoint import read_history
from trlm_core.trm.latent_example import LatentExample

TEMPLATES = Path(__file__).parent / "templates"
RESULTS_TEXT = (
    "A reply is right when an exact scorer accepts its final answer; it needs no thought for that. It is well formed when it is one closed "
    "thought followed by an answer. Decoding is greedy and nothing is forced; few-shot means solved questions of the same family in the "
    "prompt."
)
CURVES_TEXT = "The thin line is the value of each optimizer step, the thick line its moving mean."
EXAMPLES_TEXT = "The first question of every family, in the order asked: not chosen for how the replies look."


@dataclass(frozen=True)
class Fact:
    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    curves: tuple[Curve, ...] = ()
    examples: tuple[Example, ...] = ()
    latent_examples: tuple[LatentExample, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (any(table.rows for table in self.tables) or self.curves or self.examples or self.latent_examples)


def report_page(store: Store, results: RunResults, numbers: Numbers) -> str:
    return rendered(results.recipe, headline(results, numbers), sections(store, results, numbers))


def rendered(recipe: Recipe | TRMRecipe, facts: Sequence[Fact], sections: Sequence[Section]) -> str:
    """The whole page as HTML text, without its empty sections; it asks nothing of the network and runs no script."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return (
        environment.get_template("report.html.jinja")
        .render(
            recipe=recipe,
            style=(TEMPLATES / "report.css").read_text(),
            facts=facts,
            sections=[section for section in sections if not section.is_empty],
        )
        .lstrip()
    )


def headline(results: RunResults, numbers: Numbers) -> list[Fact]:
    return [
        Fact("goals reached", f"{reached(numbers.goals)} of {len(numbers.goals)}"),
        *_last_accuracy(numbers),
        Fact("base", results.recipe.base.label, results.base.name),
        Fact("variant", results.recipe.variant),
        Fact(
            "date",
            f"{max([results.base.created, *(each.checkpoint.created for each in results.stages)]):%Y-%m-%d}",
            "of the last checkpoint",
        ),
    ]


def _last_accuracy(numbers: Numbers) -> list[Fact]:
    rows = {row.label: row for row in numbers.rows if row.label in STAGE_LABELS.values() and row.trained.n}
    if not rows:
        return []
    last = list(rows.values())[-1]
    return [
        Fact(
            f"right after {last.label}",
            f"{100 * last.trained.mean:.1f}%",
            f"± {100 * last.trained.standard_error:.1f}, trained-on families",
        )
    ]


def sections(store: Store, results: RunResults, numbers: Numbers) -> list[Section]:
    """Every section in order, the empty ones too."""
    return [
        Section("goals", "Goals", tables=(goal_table(numbers),)),
        Section("results", "Results", RESULTS_TEXT, tables=(result_table(numbers),)),
        Section("comparisons", "Comparisons", tables=(comparison_table(numbers),)),
        Section("families", "Accuracy by family", tables=(family_table(numbers),)),
        Section("held-out-loss", "Held-out loss", tables=(loss_table(numbers),)),
        Section("preferences", "Preferences", tables=(preference_table(numbers),)),
        Section("curves", "Training curves", CURVES_TEXT, curves=_all_curves(store, results)),
        Section("replies", "Example replies", f"{EXAMPLES_TEXT} Base weights: {numbers.base}.", examples=tuple(examples(store, results))),
        Section("blends", "Blends", tables=tuple(table for each in results.stages for table in blend_tables(store, each))),
        Section("settings", "Settings", tables=tuple(settings_tables(results.recipe))),
        Section("environment", "Environment", tables=tuple(environment_tables(results))),
        Section("artifacts", "Artifacts", tables=(artifact_table(results),)),
    ]


def _all_curves(store: Store, results: RunResults) -> tuple[Curve, ...]:
    return tuple(curve for each in results.stages for curve in curves(each.stage, read_history(store.folder(each.checkpoint))))
