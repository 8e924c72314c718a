"""SIGKILL, of every process that takes part, at moments spread over a run: nothing finished is lost, nothing is doubled, nothing says Running."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from trlm_core.artifacts.store import Store

STAGES = ("stage1_sft", "stage2_sft_think", "stage3_dpo")
SLOW = ("stages.stage1_sft.training.epochs=20", "stages.stage2_sft_think.training.epochs=20", "stages.stage3_dpo.training.epochs=20")
MOMENTS = {
    "while it blends": ("datasets", "stage1_sft"),
    "while stage 1 trains": ("checkpoints", "stage1_sft"),
    "while stage 2 trains": ("checkpoints", "stage2_sft_think"),
    "while stage 3 trains": ("checkpoints", "stage3_dpo"),
    "while it evaluates": ("evals", "stage2_sft_think"),
}
TRAINING = [moment for moment, (kind, _) in MOMENTS.items() if kind == "checkpoints"]
FEW = [
    ("the trainer", "while stage 2 trains"),
    ("the training flow", "while stage 3 trains"),
    ("the pipeline", "while stage 1 trains"),
    ("the server", "while stage 2 trains"),
]
ALL = [
    *(("the trainer", moment) for moment in TRAINING),
    *(("the training flow", moment) for moment in TRAINING),
    *((target, moment) for target in ("the pipeline", "the server", "MLflow") for moment in MOMENTS),
    *(("the training worker", moment) for moment in TRAINING),
    *(("the cpu worker", moment) for moment in ("while it blends", "while stage 2 trains", "while it evaluates")),
]
LONG = [pytest.param(*trial, marks=pytest.mark.long) for trial in ALL if trial not in FEW]


@dataclass(frozen=True)
class Trial:
    site: Any
    recipe: dict[str, Any]
    store: Path
    until: Callable[..., Any]

    def start(self) -> str:
        return self.site.start("trlm/full-pipeline", recipe=self.recipe, where={"store": str(self.store)})

    def reach(self, moment: str) -> None:
        """Wait until that artifact is being built; of a training, until it has made steps."""
        kind, name = MOMENTS[moment]
        trains = kind == "checkpoints"

        def reached() -> bool:
            folders = [path for path in self.store.glob(f"{kind}/trlm-tiny/{name}/*") if not (path / "manifest.json").exists()]
            return any((path / "history.jsonl").exists() for path in folders) if trains else bool(folders)

        self.until(reached, 300, f"{kind}/{name} is being built")

    def finished(self) -> dict[str, float]:
        """Address -> when its manifest was written, of everything finished."""
        return {str(path.parent): path.stat().st_mtime for path in self.store.glob("*/*/*/*/manifest.json")}

    def processes(self, target: str, pipeline: str) -> list[psutil.Process]:
        services = {"the server": "prefect", "MLflow": "mlflow", "the training worker": "worker-mi300x", "the cpu worker": "worker-cpu"}
        if target in services:
            return [psutil.Process(self.site.services[services[target]].process.pid)]
        if target == "the trainer":
            return self.site.trainers()
        runs = [pipeline] if target == "the pipeline" else [each["id"] for each in self.site.children(pipeline, "train")]
        return [process for run in runs for process in self.site.flow_processes(run)]


@pytest.fixture(scope="module")
def kill_site(start_site: Callable[..., Any]) -> Any:
    return start_site()


@pytest.fixture(scope="module")
def recipe(recipe_file: Path) -> dict[str, Any]:
    return {"name": str(recipe_file), "settings": list(SLOW)}


@pytest.fixture(scope="module")
def undisturbed(kill_site: Any, recipe: dict[str, Any], outcome: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = tmp_path_factory.mktemp("undisturbed") / "store"
    kill_site.finished("trlm/full-pipeline", recipe=recipe, where={"store": str(store)})
    return outcome(str(store))


@pytest.fixture
def trial(kill_site: Any, recipe: dict[str, Any], tmp_path: Path, until: Callable[..., Any]) -> Iterator[Trial]:
    yield Trial(kill_site, recipe, tmp_path / "store", until)
    kill_site.command("trlm", "up", *kill_site.options)  # whatever the trial left dead


@pytest.mark.parametrize(("target", "moment"), [*FEW, *LONG])
def test_a_killed_run_ends_as_an_undisturbed_one(
    target: str, moment: str, trial: Trial, undisturbed: Any, outcome: Callable[[str], Any]
) -> None:
    pipeline = trial.start()
    trial.reach(moment)
    before = trial.finished()
    killed = trial.processes(target, pipeline)
    assert killed, f"{target} was there to be killed"
    for process in killed:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(killed, timeout=10)
    trial.site.command("trlm", "up", *trial.site.options)  # brings back what is not there

    ends = [trial.site.wait(pipeline)["type"]]
    if ends[0] != "COMPLETED":
        again = trial.start()
        ends.append(trial.site.wait(again)["type"])
    assert ends[-1] == "COMPLETED"
    assert outcome(str(trial.store)) == undisturbed
    after = trial.finished()
    assert before, "finished work existed"
    assert {address: after[address] for address in before} == before, "finished work was reused"
    assert len(after) > len(before), "unfinished work existed"
    assert_each_checkpoint_was_made_once(trial)
    assert_nothing_says_running(trial)


def assert_each_checkpoint_was_made_once(trial: Trial) -> None:
    manifests = Store.open(trial.store).manifests()
    for stage in STAGES:
        assert len([each for each in manifests if each.kind == "checkpoints" and each.name == stage]) == 1
    finished = [
        run.data.tags["trlm.fingerprint"]
        for run in trial.site.mlflow_runs()
        if run.data.tags["trlm.store"] == str(trial.store)
        and run.info.status == "FINISHED"
        and run.info.run_name.startswith("checkpoints/stage")
    ]
    assert len(finished) == len(set(finished)), "no stage was trained to its end twice"


def assert_nothing_says_running(trial: Trial) -> None:
    def open_ends() -> list[str]:
        mlflow = [run.info.run_name for run in trial.site.mlflow_runs() if run.info.status == "RUNNING"]
        alive = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
        flow_runs = [run["name"] for run in trial.site.flow_runs(flow_runs=alive) if run["flow_id"] != trial.site.flow_id("reconcile")]
        over = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}}
        task_runs = trial.site.api("POST", "/task_runs/filter", flow_runs=over, task_runs=alive)
        return mlflow + flow_runs + [run["name"] for run in task_runs]

    trial.until(lambda: not open_ends(), 180, "nothing says Running")
    assert trial.site.trainers() == []
