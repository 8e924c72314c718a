"""`trlm run` from sources to report on a two-layer model: what it leaves, what a rerun reuses, what a change rebuilds."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from trlm_core.artifacts.store import Store

STAGES = ["stage1_sft", "stage2_sft_think", "stage3_dpo"]


@pytest.fixture(scope="module")
def recipe_file(tiny_recipe_tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "trlm-tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe_tree, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first_run(trlm: Any, recipe_file: Path, store: Path) -> Any:
    done = trlm("run", str(recipe_file), "--store", str(store), "--json")
    assert done.code == 0, done.err[-4000:]
    return done


def test_the_last_line_names_everything_that_the_run_left(first_run: Any, store: Path) -> None:
    line = first_run.last_line
    assert set(line) == {"store", "report", "checkpoints", "fingerprints", "evaluation"}
    assert line["store"] == str(store)
    assert Path(line["report"]).read_text().startswith("<!DOCTYPE html>")
    assert list(line["checkpoints"]) == STAGES
    assert all((Path(folder) / "model.safetensors").is_file() for folder in line["checkpoints"].values())
    subjects = ["base", "base-few-shot", "stage1_sft", "stage2_sft_think-start", "stage2_sft_think", "stage3_dpo"]
    assert list(line["evaluation"]) == subjects


def test_the_end_says_where_everything_lies_and_how_to_open_the_pages(first_run: Any) -> None:
    for words in ("report ", "checkpoint ", "mlflow ui --backend-store-uri sqlite:///", "prefect server start"):
        assert words in first_run.out


def test_nothing_of_the_interpreter_s_end_stands_below_it(first_run: Any) -> None:
    assert "leaked" not in first_run.err, "duckdb's binding lists what Prefect's threads still hold"


def test_every_finished_artifact_has_all_its_bytes(first_run: Any, store: Path) -> None:
    manifests = Store(store).manifests()
    assert {manifest.kind for manifest in manifests} == {"datasets", "checkpoints", "evals", "reports"}
    for manifest in manifests:
        folder = Store(store).folder(manifest)
        assert all((folder / name).stat().st_size == entry.size for name, entry in manifest.files.items())


def test_mlflow_has_one_parent_run_with_finished_children_and_their_curves(first_run: Any, store: Path) -> None:
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    runs = client.search_runs(["1"], max_results=200)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id}
    assert len(parents) == 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {f"checkpoints/{stage}" for stage in STAGES} <= set(children)
    losses = client.get_metric_history(children["checkpoints/stage2_sft_think"].info.run_id, "loss")
    assert [metric.step for metric in losses] == list(range(1, len(losses) + 1))
    (dataset,) = children["checkpoints/stage3_dpo"].to_dictionary()["inputs"]["dataset_inputs"]
    rendered = next(m for m in Store(store).manifests() if m.name == "stage3_dpo-tokens")
    assert dataset["dataset"]["digest"] == rendered.fingerprint[:36]
    names = {file.path for file in client.list_artifacts(parents[0].info.run_id, "report")}
    assert "report/report.html" in names
    candidate = client.get_model_version_by_alias("trlm-tiny.stage3_dpo", "candidate")
    assert candidate.tags["fingerprint"] == first_run.last_line["fingerprints"]["stage3_dpo"]


def test_a_rerun_reuses_everything(first_run: Any, trlm: Any, recipe_file: Path, store: Path) -> None:
    before = {manifest.address for manifest in Store(store).manifests()}
    again = trlm("run", str(recipe_file), "--store", str(store), "--json")
    assert again.code == 0, again.err[-4000:]
    assert {manifest.address for manifest in Store(store).manifests()} == before
    assert again.last_line == first_run.last_line


def test_a_changed_learning_rate_retrains_that_stage_and_those_after_it_and_the_log_names_it(
    first_run: Any, trlm: Any, recipe_file: Path, store: Path
) -> None:
    before = {manifest.address for manifest in Store(store).manifests()}
    change = "stages.stage2_sft_think.training.learning_rate=7e-4"
    done = trlm("run", str(recipe_file), "--store", str(store), "--set", change, "--json")
    assert done.code == 0, done.err[-4000:]
    new = {tuple(m.address.split("/")[:3]) for m in Store(store).manifests() if m.address not in before}
    assert {name for kind, _, name in new if kind == "checkpoints"} == {"stage2_sft_think", "stage3_dpo"}
    assert [name for kind, _, name in new if kind == "datasets"] == ["stage3_dpo-reference"], "the log-probs of the new start"
    assert done.last_line["fingerprints"]["stage1_sft"] == first_run.last_line["fingerprints"]["stage1_sft"]
    assert "training.learning_rate: 0.001 -> 0.0007" in done.out + done.err
