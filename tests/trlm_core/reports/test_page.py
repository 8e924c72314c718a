"""The report as an artifact: its files, its counts, when it is made again."""

import dataclasses
import json

from trlm_core.artifacts.store import Store
from trlm_core.reports.page import report_spec, write_report
from trlm_core.reports.results import RunResults


def test_report_holds_page_numbers_and_table(store: Store, results: RunResults) -> None:
    manifest = write_report(store, results)
    assert manifest.address.startswith("reports/tiny/report/001-")
    assert set(manifest.files) == {"report.html", "results.json", "result_table.md"}
    assert manifest.counts == {"goals": 12, "goals_reached": 9}


def test_results_are_machine_readable(store: Store, results: RunResults) -> None:
    read = json.loads((store.folder(write_report(store, results)) / "results.json").read_text())
    assert {"rows", "comparisons", "goals", "held_out", "preferences"} <= read.keys()
    assert read["rows"][4]["trained"] == {"mean": 0.75, "standard_error": 0.25, "n": 4}
    assert read["goals"][2] == {
        "name": "stage 1: held-out loss falls",
        "wanted": "below its start's 1.6000",
        "got": "1.9000 (4 rows)",
        "reached": False,
    }


def test_the_markdown_table_is_what_a_readme_quotes(store: Store, results: RunResults) -> None:
    lines = (store.folder(write_report(store, results)) / "result_table.md").read_text().splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| base (dequantised Q4_1) | 0.0 ± 0.0 (4) | 0.0 ± 0.0 (2) | 0.0 ± 0.0 (6) | – |"
    assert lines[6] == "| stage 2 | 75.0 ± 25.0 (4) | 50.0 ± 50.0 (2) | 83.3 ± 16.7 (6) | 5.0 ± 0.0 (6) |"


def test_the_same_results_are_reported_once(store: Store, results: RunResults) -> None:
    assert write_report(store, results) == write_report(store, results)


def test_other_goals_make_another_report(results: RunResults) -> None:
    evaluation = results.recipe.evaluation
    assert evaluation is not None
    stricter = evaluation.model_copy(update={"goals": evaluation.goals.model_copy(update={"well_formed": 0.99})})
    changed = dataclasses.replace(results, recipe=results.recipe.model_copy(update={"evaluation": stricter}))
    assert report_spec(changed).fingerprint != report_spec(results).fingerprint


def test_every_artifact_is_an_input(results: RunResults) -> None:
    inputs = report_spec(results).inputs
    assert len(inputs) == 2 + 3 * 5 + 6
    assert inputs["stage2_sft_think/checkpoint"] == results.stages[1].checkpoint.fingerprint
    assert inputs["replies/base-few-shot"] == results.replies["base-few-shot"].fingerprint
