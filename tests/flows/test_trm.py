"""`trlm trm run` from thoughts to report on a thinker of some thousand weights: what it leaves, reuses, refuses, and how it goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from flows.trm_research import TRMChoice, trm
from tests.trlm_core.trm.tiny_recipe import tiny_trm_tree
from trlm_core.artifacts.store import Store
from trlm_core.recipes.trm_load import load_trm_recipe
from trlm_core.training.checkpoint import read_history
from trlm_core.training.saves import SAVES, newest_step
from trlm_core.trm_lineage import TRMLineage

TRAININGS = {"base", "phase1", "nonrecursive", "pause", "direct-tuned", "phase2", "phase2b", "phase3"}
SECONDS_TO_PHASE_2 = 240


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "trm-tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_trm_tree(), sort_keys=False))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first_run(trlm: Any, recipe_file: Path, store: Path) -> Any:
    done = trlm("trm", "run", str(recipe_file), "--store", str(store), "--json")
    assert done.code == 0, done.err[-4000:]
    return done


def test_the_last_line_names_everything_that_the_run_left(first_run: Any, recipe_file: Path) -> None:
    line = first_run.last_line
    foretold = {role: spec.fingerprint for role, spec in TRMLineage(load_trm_recipe(str(recipe_file))).specs.items()}
    assert foretold.items() <= line["fingerprints"].items()
    assert Path(line["report"]).read_text().startswith("<!DOCTYPE html>")
    assert {"direct", "trm/1", "trm/halting", "direct_tuned"} <= set(line["exact"])


def test_mlflow_has_a_child_run_a_training_with_a_point_a_step(first_run: Any, store: Path) -> None:
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    runs = client.search_runs(["1"], max_results=200)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {f"checkpoints/{name}" for name in TRAININGS} | {"evals/phase2", "evals/evaluation"} <= set(children)
    phase2 = children["checkpoints/phase2"]
    losses = client.get_metric_history(phase2.info.run_id, "loss")
    assert [metric.step for metric in losses] == list(range(1, 13))
    assert phase2.data.params["phase2.training.steps"] == "12"
    assert {"manifest.json", "history.jsonl"} <= {file.path for file in client.list_artifacts(phase2.info.run_id)}
    assert client.get_metric_history(children["checkpoints/base"].info.run_id, "loss")[-1].step == 6
    assert "report/report.html" in {file.path for file in client.list_artifacts(parent.info.run_id, "report")}


def test_a_rerun_reuses_everything(first_run: Any, trlm: Any, recipe_file: Path, store: Path) -> None:
    before = {manifest.address for manifest in Store(store).manifests()}
    again = trlm("trm", "run", str(recipe_file), "--store", str(store), "--json")
    assert again.code == 0, again.err[-4000:]
    assert {manifest.address for manifest in Store(store).manifests()} == before
    assert again.last_line == first_run.last_line


def test_a_gate_that_does_not_hold_ends_the_run_and_the_checkpoint_stays(first_run: Any, trlm: Any, recipe_file: Path, store: Path) -> None:
    # On 10 puzzles nothing solves any: every accuracy and every difference is 0.
    done = trlm("trm", "run", str(recipe_file), "--store", str(store), "--set", "gates=stop")
    assert done.code == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("trlm: ")]
    for words in ("gate of phase1", "oracle_over_text: wanted more than 0.000, got 0.000", "its checkpoint stays", "gates: report"):
        assert words in line
    assert (store / TRMLineage(load_trm_recipe(str(recipe_file))).specs["phase1"].place).is_dir()


def test_a_report_shows_another_run_as_an_ablation(first_run: Any, trlm: Any, recipe_file: Path, store: Path) -> None:
    done = trlm("trm", "report", str(recipe_file), "--store", str(store), "--ablation", "model.n_latent_steps=1")
    assert done.code == 2
    assert "wanted the finished run of trm-tiny, got no evaluation" in done.err
    done = trlm("trm", "report", str(recipe_file), "--store", str(store), "--ablation", "gates=stop", "--json")
    assert done.code == 0, done.err
    assert "gates=stop" in Path(done.last_line["report"]).read_text()


BAD_SETTINGS = {
    "an unknown key": ("phase2.training.lr=1", ["wanted one of", "learning_rate", "'lr'"]),
    "an unknown value": ("phase3.loss_type=ppo", ["loss_type", "'grpo', 'dr_grpo' or 'dapo'", "'ppo'"]),
    "heads that do not divide the width": ("model.n_heads=3", ["model", "wanted a multiple of 6", "got 16"]),
    "a base whose heads do not divide its size": ("base.num_attention_heads=3", ["base.hidden_size", "wanted a multiple of 6", "got 16"]),
    "too few rows for the statistics": ("phase1.norm_examples=2000", ["norm_examples", "wanted at most the 1,000 of train", "2,000"]),
    "more prompts than there are": (
        "phase3.prompts={seed: 1, givens: [15], puzzles: 4000}",
        ["puzzles", "wanted 4,000 puzzles of 15 givens on 200 grids", "ask for fewer"],
    ),
    "a row without its control": ("controls.pause=null", ["evaluation.rows", "pause"]),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_bad_setting_is_one_clear_line_and_nothing_is_built(case: str, trlm: Any, recipe_file: Path, tmp_path: Path) -> None:
    setting, words = BAD_SETTINGS[case]
    done = trlm("trm", "run", str(recipe_file), "--set", setting, "--store", str(tmp_path / "runs"))
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert line.startswith("trlm: ")
    for each in words:
        assert each in line
    assert not list(tmp_path.glob("runs/*/*/*")), "nothing is built"


def test_a_base_that_is_not_in_the_store_names_the_command_that_makes_it(trlm: Any, tmp_path: Path) -> None:
    done = trlm("trm", "run", "trm-smollm2-135m", "--store", str(tmp_path / "runs"))
    assert done.code == 2
    assert "run `trlm run trlm-135m-local --budget full` on this store first" in done.err


def test_without_the_extra_the_line_says_what_to_install(environment: dict[str, str], recipe_file: Path, tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['pytorch_lightning'] = None; sys.argv[0] = 'trlm'; from flows.cli import app; app()"
    arguments = [sys.executable, "-c", hidden, "trm", "run", str(recipe_file), "--store", str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert "wanted the packages pytorch-lightning, got none installed; pip install 'trlm[trm]'" in done.stderr


@pytest.mark.long
def test_a_run_killed_in_phase_2_goes_on_to_the_same_weights(
    first_run: Any, trlm: Any, recipe_file: Path, store: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Phase 2 has many steps, so that the kill meets it; the undisturbed run is in the first store."""
    longer = "phase2.training.steps=400"
    whole = trlm("trm", "run", str(recipe_file), "--store", str(store), "--set", longer, "--json")
    assert whole.code == 0, whole.err[-4000:]
    command = [str(Path(sys.executable).parent / "trlm"), "trm", "run", str(recipe_file), "--set", longer, "--save-steps", "10"]
    command += ["--store", str(tmp_path / "runs")]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        spec = TRMLineage(load_trm_recipe(str(recipe_file), settings=[longer])).specs["phase2"]
        saved = wait_for_save(tmp_path / "runs" / ".unfinished" / spec.fingerprint / "saves", process)
        os.killpg(process.pid, signal.SIGKILL)
    assert 0 < saved < 400, "it was killed with phase 2 unfinished"
    again = trlm("trm", "run", str(recipe_file), "--store", str(tmp_path / "runs"), "--set", longer, "--json")
    assert again.code == 0, again.err[-4000:]
    assert again.last_line["fingerprints"] == whole.last_line["fingerprints"]
    both = [Store(folder).find(spec) for folder in (store, tmp_path / "runs")]
    assert both[0] is not None
    assert both[1] is not None
    assert both[0].files["model.safetensors"] == both[1].files["model.safetensors"]
    assert both[0].counts == both[1].counts
    statuses = [run.info.status for run in MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}").search_runs(["1"])]
    assert "RUNNING" not in statuses


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_is_killed_in_mlflow_and_goes_on_in_the_same_run_behind_its_last_step(
    number: signal.Signals, first_run: Any, trlm: Any, recipe_file: Path, store: Path, environment: dict[str, str]
) -> None:
    """All before phase 2 is in the store; phase 2 has many steps, and no save by time in the seconds that it gets."""
    longer = f"phase2.training.steps={2_000 + number}"
    arguments = ["trm", "run", str(recipe_file), "--set", longer, "--store", str(store)]
    spec = TRMLineage(load_trm_recipe(str(recipe_file), settings=[longer])).specs["phase2"]
    workspace = store / ".unfinished" / spec.fingerprint
    listening = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from flows.cli import app; app()"
    with subprocess.Popen(
        [sys.executable, "-c", listening, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for_steps(workspace, process)
        process.send_signal(number)
        assert process.wait(timeout=60) != 0
    done = len(read_history(workspace))
    assert newest_step(workspace / SAVES) == done, "the last step that was made is the one that is saved"
    (killed,) = runs_of(store, spec.fingerprint)
    parent = MlflowClient(f"sqlite:///{store / 'mlflow.db'}").get_run(killed.data.tags["mlflow.parentRunId"])
    assert [run.info.status for run in (killed, parent)] == ["KILLED", "KILLED"]

    again = trlm(*arguments)
    assert again.code == 0, again.err[-4000:]
    (finished,) = runs_of(store, spec.fingerprint)
    assert (finished.info.run_id, finished.info.status) == (killed.info.run_id, "FINISHED")
    losses = MlflowClient(f"sqlite:///{store / 'mlflow.db'}").get_metric_history(finished.info.run_id, "loss")
    assert [metric.step for metric in losses] == list(range(1, 2_001 + number)), "no step was done twice"


def runs_of(store: Path, fingerprint: str) -> list[Any]:
    """MLflow's, of this artifact."""
    return list(MlflowClient(f"sqlite:///{store / 'mlflow.db'}").search_runs(["1"], f"tags.`trlm.fingerprint` = '{fingerprint}'"))


def wait_for_steps(workspace: Path, process: "subprocess.Popen[Any]") -> None:
    ends = time.monotonic() + SECONDS_TO_PHASE_2
    while not (workspace / "history.jsonl").exists() or len(read_history(workspace)) < 20:
        assert process.poll() is None, "it ended before phase 2"
        assert time.monotonic() < ends, f"wanted steps of phase 2 within {SECONDS_TO_PHASE_2} s"
        time.sleep(0.02)


def wait_for_save(saves: Path, process: "subprocess.Popen[Any]") -> int:
    """The step of the newest save, some steps after the first."""
    ends = time.monotonic() + SECONDS_TO_PHASE_2
    while time.monotonic() < ends:
        assert process.poll() is None, "it ended before phase 2"
        steps = [int(folder.name.removeprefix("step-")) for folder in saves.glob("step-*")]
        if steps and max(steps) >= 30:
            return max(steps)
        time.sleep(0.02)
    raise AssertionError(f"wanted a save of phase 2 within {SECONDS_TO_PHASE_2} s, got none")


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm3-3b"])
def test_a_deployment_starts_the_flow_with_a_recipe_that_there_is(name: str) -> None:
    tree = yaml.safe_load((Path(__file__).parents[2] / "deployments" / "prefect.yaml").read_text())
    (deployment,) = [each for each in tree["deployments"] if each["name"] == name]
    assert deployment["entrypoint"] == "flows.trm_research.trm"
    assert trm.name == "trm"
    assert TRMChoice.model_validate(deployment["parameters"]["recipe"]).load().name == f"trm-{name}"
