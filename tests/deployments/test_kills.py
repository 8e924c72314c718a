"""SIGKILL, of every process that takes part, at moments spread over a run: nothing finished is lost, nothing is doubled, nothing says Running."""

import functools
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from trlm_core.artifacts.store import Store

STAGES = ("stage1_sft", "stage2_sft_think", "stage3_dpo")
MOMENTS = {  # what is finished by then, and what is not
    "while it blends": ("datasets/sources/*", "datasets/trlm-tiny/stage3_dpo-tokens"),
    "while stage 1 trains": ("datasets/trlm-tiny/stage1_sft-tokens", "checkpoints/trlm-tiny/stage1_sft"),
    "while stage 2 trains": ("checkpoints/trlm-tiny/stage1_sft", "checkpoints/trlm-tiny/stage2_sft_think"),
    "while stage 3 trains": ("checkpoints/trlm-tiny/stage2_sft_think", "checkpoints/trlm-tiny/stage3_dpo"),
    "while it evaluates": ("evals/trlm-tiny/base", "evals/trlm-tiny/stage3_dpo"),
}
TRAINING = [moment for moment in MOMENTS if moment.endswith("trains")]
FEW = [  # on two stages
    ("the trainer", "while stage 2 trains"),
    ("the pipeline", "while stage 1 trains"),
    ("the server", "while stage 2 trains"),
]
ALL = [  # on three
    *(("the trainer", moment) for moment in TRAINING),
    *(("the training flow", moment) for moment in TRAINING),
    *((target, moment) for target in ("the pipeline", "the server", "MLflow") for moment in MOMENTS),
    *(("the training worker", moment) for moment in TRAINING),
    *(("the cpu worker", moment) for moment in ("while it blends", "while stage 2 trains", "while it evaluates")),
]
TRIALS = [*((2, *trial) for trial in FEW), *(pytest.param(3, *trial, marks=pytest.mark.long) for trial in ALL)]


@dataclass(frozen=True)
class Trial:
    site: Any
    recipe: dict[str, Any]
    store: Path
    until: Callable[..., Any]

    def start(self) -> str:
        return self.site.start("trlm/full-pipeline", recipe=self.recipe, where={"store": str(self.store)})

    def reach(self, moment: str) -> None:
        """Wait until the one is finished and the other is not; of a training, until it has made steps."""
        done, under_way = MOMENTS[moment]

        def reached() -> bool:
            begun = moment not in TRAINING or self.has_made_steps(under_way)
            return begun and bool(list(self.store.glob(f"{done}/*/manifest.json")))

        self.until(reached, 300, moment)
        assert not list(self.store.glob(f"{under_way}/*/manifest.json")), f"{moment}: it was over before it was seen"

    def has_made_steps(self, place: str) -> bool:
        fingerprints = [folder.name.split("-")[1] for folder in self.store.glob(f"{place}/*")]
        histories = [path for short in fingerprints for path in self.store.glob(f".unfinished/{short}*/history.jsonl")]
        return any(path.stat().st_size for path in histories)

    def end_of(self, flow_run: str) -> str:
        """Type of its final state; on the way there are never two trainers at once."""

        def over() -> str | None:
            assert len(self.site.trainers()) <= 1, "two trainers at once"
            state = self.site.state(flow_run)["type"]
            return state if state in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"} else None

        return self.until(over, 420, f"flow run {flow_run} ends")

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


@pytest.fixture
def trial_of(site: Any, recipe_of: Callable[[int], Any], tmp_path: Path, until: Callable[..., Any]) -> Iterator[Callable[[int], Trial]]:
    yield lambda stages: Trial(site, recipe_of(stages), tmp_path / "store", until)
    site.command("trlm", "up", *site.options)  # whatever the trial left dead


@pytest.fixture(scope="module")
def undisturbed(
    site: Any, recipe_of: Callable[[int], Any], outcome: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Any]:
    """What an undisturbed pipeline of so many stages leaves; run once."""

    @functools.cache
    def left(stages: int) -> Any:
        store = str(tmp_path_factory.mktemp("undisturbed") / "store")
        site.finished("trlm/full-pipeline", recipe=recipe_of(stages), where={"store": store})
        return outcome(store)

    return left


@pytest.mark.parametrize(("stages", "target", "moment"), TRIALS)
def test_a_killed_run_ends_as_an_undisturbed_one(
    stages: int,
    target: str,
    moment: str,
    trial_of: Callable[[int], Trial],
    undisturbed: Callable[[int], Any],
    outcome: Callable[[str], Any],
) -> None:
    wanted, trial = undisturbed(stages), trial_of(stages)
    killed_run = trial.start()
    trial.reach(moment)
    before = trial.finished()
    killed = trial.processes(target, killed_run)
    assert killed, f"{target} was there to be killed"
    for process in killed:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(killed, timeout=10)
    trial.site.command("trlm", "up", *trial.site.options)  # brings back what is not there

    if trial.end_of(killed_run) != "COMPLETED":
        assert trial.end_of(trial.start()) == "COMPLETED"
    assert outcome(str(trial.store)) == wanted
    after = trial.finished()
    assert before, "finished work existed"
    assert {address: after[address] for address in before} == before, "finished work was reused"
    assert len(after) > len(before), "unfinished work existed"
    assert_each_checkpoint_was_made_once(trial)
    assert_nothing_says_running(trial)


@pytest.mark.long
def test_a_run_that_died_with_its_worker_is_ended_by_its_silence(trial_of: Callable[[int], Trial]) -> None:
    trial = trial_of(2)
    killed_run = trial.start()
    trial.reach("while it blends")
    worker, flow_process = trial.processes("the cpu worker", killed_run), trial.processes("the pipeline", killed_run)
    for process in [*worker, *flow_process]:
        process.send_signal(signal.SIGKILL)
    trial.site.command("trlm", "up", *trial.site.options)
    state = trial.site.wait(killed_run, seconds=600)
    assert (state["type"], state["message"]) == ("CRASHED", "its process is gone: no heartbeat for 5 minutes")
    assert_nothing_says_running(trial)


def assert_each_checkpoint_was_made_once(trial: Trial) -> None:
    manifests = Store.open(trial.store).manifests()
    for stage in STAGES:
        assert len([each for each in manifests if each.kind == "checkpoints" and each.name == stage]) <= 1
    finished = [
        run.data.tags["trlm.fingerprint"]
        for run in trial.site.mlflow_runs()
        if run.data.tags["trlm.store"].endswith(f":{trial.store}")
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
