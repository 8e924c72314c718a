"""The report as an artifact: report.html, results.json (every number), result_table.md (what the README quotes)."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.reports.compare import Numbers, numbers
from trlm_core.reports.html import report_page
from trlm_core.reports.record_tables import artifacts
from trlm_core.reports.results import RunResults
from trlm_core.reports.score_tables import reached, result_table
from trlm_core.reports.table import markdown

PAGE, RESULTS, RESULT_TABLE = "report.html", "results.json", "result_table.md"


def report_spec(results: RunResults) -> Spec:
    # Goals and texts of the recipe are on the page but in no artifact's identity, so the report's own carries the recipe.
    recipe = results.recipe.model_dump(mode="json")
    inputs = {role: manifest.fingerprint for role, manifest in artifacts(results).items()}
    return Spec("reports", results.recipe.name, "report", {"made_by": "report/1", "recipe": recipe}, inputs, recipe)


def write_report(store: Store, results: RunResults) -> Manifest:
    """The report of these results: reused where nothing that it is made from has changed."""

    def build(folder: Path) -> dict[str, Any]:
        measured = numbers(store, results)
        (folder / PAGE).write_text(report_page(store, results, measured), encoding="utf-8")
        (folder / RESULTS).write_bytes(TypeAdapter(Numbers).dump_json(measured, indent=1))
        (folder / RESULT_TABLE).write_text(markdown(result_table(measured)), encoding="utf-8")
        return {"goals": len(measured.goals), "goals_reached": reached(measured.goals)}

    return store.make(report_spec(results), build)
