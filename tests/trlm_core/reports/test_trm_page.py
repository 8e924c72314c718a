"""The page of a TRM run: every number is the evaluation's, nothing that a model wrote becomes markup."""

import html
import json
from pathlib import Path

import pytest

from tests.trlm_core.conftest import BuiltTRM
from tests.trlm_core.trm.tiny_recipe import tiny_trm_recipe
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.lineage import MissingArtifactError
from trlm_core.reports.trm_figures import accuracy_figure, halting_figure, spread_out, thinned, training_curves
from trlm_core.reports.trm_page import PAGE, RESULTS, trm_facts, write_trm_report
from trlm_core.reports.trm_results import TRMResults
from trlm_core.reports.trm_tables import ablation_table, gate_table, layer_passes, row_label, row_table, training_table
from trlm_core.trm.evaluate import Evaluation, EvaluationRow
from trlm_core.trm.results import HaltingPoint, read_evaluation
from trlm_core.trm_lineage import TRMLineage

SECTIONS = ["gates", "steps", "rows", "curves", "examples", "settings", "artifacts"]


def row(name: str, exact: float, steps: float | None = None) -> EvaluationRow:
    return EvaluationRow(name, exact, 0.02, steps, None if steps is None else 0.9, 17.0, 16, 3.42e11, 1270.4, 2.5)


EVALUATION = Evaluation(500, 190_000, 400_000, (row("direct", 0.434), row("trm/1", 0.382, 1.0), row("trm/4", 0.626, 4.0)))


@pytest.fixture(scope="module")
def report(built_trm: BuiltTRM) -> Manifest:
    return write_trm_report(built_trm.store, TRMLineage(built_trm.recipe).results(built_trm.store))


@pytest.fixture(scope="module")
def page(built_trm: BuiltTRM, report: Manifest) -> str:
    return (built_trm.store.folder(report) / PAGE).read_text()


def test_the_page_has_every_section_and_its_figures(page: str):
    assert [name for name in SECTIONS if f'<section id="{name}">' in page] == SECTIONS
    assert "Figure 1: accuracy against supervision steps" in page
    assert "Figure 2: halting" in page
    assert "phase 2 training loss" in page
    assert "phase 3 mean reward" in page


def test_the_page_asks_nothing_of_the_network(page: str):
    assert "<script" not in page
    assert 'src="http' not in page


def test_an_example_shows_its_thought_a_step_with_special_tokens_as_text(built_trm: BuiltTRM, page: str):
    first = next(iter(json.loads(line) for line in (built_trm.folder("evaluation") / "examples.jsonl").read_text().splitlines()))
    assert html.escape(first["prompt"]) in page
    assert html.escape(first["steps"][-1]["thought"]) in page
    assert "<think>" not in page


def test_results_json_has_the_evaluation_and_the_claims(built_trm: BuiltTRM, report: Manifest):
    tree = json.loads((built_trm.store.folder(report) / RESULTS).read_text())
    assert [row["name"] for row in tree["evaluation"]["rows"]] == [
        each.name for each in read_evaluation(built_trm.folder("evaluation")).rows
    ]
    assert len(tree["claims"]) == report.counts["gates"] == 6
    assert sum(claim["holds"] for claim in tree["claims"]) == report.counts["gates_held"]


def test_an_ablation_is_a_row_and_part_of_the_fingerprint(built_trm: BuiltTRM, report: Manifest):
    results = TRMLineage(built_trm.recipe).results(built_trm.store)
    with_row = TRMResults(results.recipe, results.made, {"model.n_latent_steps=1": built_trm.made["evaluation"]})
    other = write_trm_report(built_trm.store, with_row)
    assert other.fingerprint != report.fingerprint
    assert "model.n_latent_steps=1" in (built_trm.store.folder(other) / PAGE).read_text()


def test_a_run_that_is_not_finished_is_named(built_trm: BuiltTRM, tmp_path: Path):
    with pytest.raises(MissingArtifactError, match="wanted the finished run of trm-tiny, got no thoughts"):
        TRMLineage(built_trm.recipe).results(Store.open(tmp_path / "empty"))


def test_every_accuracy_has_its_cost_beside_it():
    cells = [[cell.text for cell in row] for row in row_table(EVALUATION, "validation").rows]
    assert cells[2] == ["TRM, 4 supervision steps", "62.6", "4.0", "90.0", "17.0", "16", "342 G", "1,270.4", "2.5"]
    assert cells[0][:4] == ["no thought", "43.4", "–", "–"]


def test_the_halting_head_stands_beside_a_head_of_one_mind():
    """An accuracy of 38.2 % makes 61.8 % right for one that calls every answer wrong."""
    table = row_table(EVALUATION, "validation")
    assert [(row[3].text, row[3].spread) for row in table.rows] == [("–", ""), ("90.0", "against 61.8"), ("90.0", "against 62.6")]


def test_the_headline_is_the_trm_as_it_is_exported_and_not_its_best_on_the_split_that_is_shown():
    rows = {row.name: row for row in [*EVALUATION.rows, row("trm/8", 0.9, 8.0)]}
    assert [(fact.name, fact.value) for fact in trm_facts(rows, exported=4, best=4)] == [("TRM, 4 supervision steps", "62.6%")]
    (_, best) = trm_facts(rows, exported=4, best=1)
    assert (best.name, best.value, best.note) == ("TRM, 1 supervision step", "38.2%", "± 2.0, best on validation")


def test_rows_of_phase_2_are_told_from_those_of_the_last_phase():
    assert [row_label(name) for name in ("phase2/4", "trm/4")] == ["TRM after phase 2, 4 supervision steps", "TRM, 4 supervision steps"]


def test_what_the_trainings_took_stands_beside_what_they_reached():
    """Of the tiny recipe: 12 steps of T (n + 1) = 3 layers forward and 6 backward; the twin's 3 steps of 1 and 2."""
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in training_table(tiny_trm_recipe()).rows}
    assert rows["TRM, phase 2"] == ["12", "8", "108"]
    assert rows["the same parameters without recursion"] == ["3", "8", "9"]
    assert rows["pause tokens (learned constants)"] == ["3", "8", "–"]


def test_shallower_steps_of_a_curriculum_count_as_such():
    shallow = [{"share": 0.5, "n_latent_steps": 1, "n_deep_recursions": 1}]
    assert layer_passes(tiny_trm_recipe(**{"phase2.curriculum": shallow}), "phase2") == 6 * 9 + 6 * 6


def test_an_ablation_has_a_column_a_step():
    table = ablation_table({"model.n_latent_steps=1": EVALUATION})
    assert table.head == ("changed", "TRM, 1 supervision step", "TRM, 4 supervision steps")
    assert [cell.text for cell in table.rows[0]] == ["model.n_latent_steps=1", "38.2", "62.6"]


def test_gates_say_wanted_and_got(built_trm: BuiltTRM):
    table = gate_table({"phase2": built_trm.made["phase2-measured"]})
    assert table.rows[0][1].text == "TRM over no thought"
    assert all(row[4].kind in ("good", "bad") for row in table.rows)


def test_figures_of_the_same_numbers_are_the_same_bytes():
    assert accuracy_figure(1, EVALUATION) == accuracy_figure(1, EVALUATION)
    points = [HaltingPoint(1, 0.2, 0.1), HaltingPoint(2, 0.5, 0.6)]
    assert halting_figure(2, points).last == pytest.approx(60.0)
    assert accuracy_figure(1, EVALUATION).first == pytest.approx(38.2)


def test_a_metric_that_no_line_has_gives_no_curve():
    made = training_curves(3, {"phase3": [{"step": 1, "reward_mean": 0.1, "exact": 0.0}, {"step": 2, "reward_mean": 0.3, "exact": 0.1}]})
    assert [(each.number, each.title) for each in made] == [
        (3, "Figure 3: phase 3 mean reward"),
        (4, "Figure 4: phase 3 sampled answers that are right"),
    ]


def test_a_long_curve_is_thinned_to_means_of_stretches():
    assert thinned([(1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0)], most=2) == [(2, 3.0), (4, 7.0)]
    assert thinned([(1, 2.0)], most=2) == [(1, 2.0)]


def test_names_of_levels_that_are_close_do_not_lie_on_one_another():
    assert spread_out({"twin": 43.4, "ceiling": 91.0, "direct": 43.4, "pause": 42.0}, gap=3.0) == {
        "pause": 42.0, "twin": 45.0, "direct": 48.0, "ceiling": 91.0,
    }  # fmt: skip
