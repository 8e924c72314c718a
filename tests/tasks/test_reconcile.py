"""What a killed process left Running is ended, and what lives is left alone: on a real Prefect server and a real MLflow."""

from collections.abc import Iterator
from typing import Any

import mlflow
import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run as this_run
from prefect.states import Crashed, Running
from prefect.testing.utilities import prefect_test_harness

from tasks.reconcile import FLOW_RUN, reconcile
from trlm_core.tracking import RunAddress, Tracker

STORE = "/somewhere/runs"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("tracking")
    return Tracker(uri=f"sqlite:///{folder / 'mlflow.db'}", artifacts=folder / "mlruns")


class Left:
    """Ids of what one pipeline left, whose process died inside its subflow's task."""

    def __init__(self, tracker: Tracker, store: str, final: bool) -> None:
        self.ids: dict[str, Any] = {}

        @task
        def work() -> None:
            self.ids["task"] = this_run.id

        @flow(name="train")
        def inner() -> None:
            self.ids["inner"] = this_run.id
            self.ids["child"] = tracker.start("child", params={}, tags=tags(str(this_run.id), store, "checkpoints"))
            work()

        @flow(name="trlm")
        def outer() -> None:
            self.ids["outer"] = this_run.id
            self.ids["parent"] = tracker.start("parent", params={}, tags=tags(str(this_run.id), store, "pipeline"))
            inner()

        outer()
        with get_client(sync_client=True) as client:  # as it was when the process died
            task_runs = client.read_task_runs()
            self.task_run = next(run.id for run in task_runs if str(run.flow_run_id) == str(self.ids["inner"]))
            client.set_task_run_state(self.task_run, Running(), force=True)
            client.set_flow_run_state(self.ids["inner"], Running(), force=True)
            client.set_flow_run_state(self.ids["outer"], Crashed(message="killed") if final else Running(), force=True)

    def states(self) -> dict[str, str]:
        with get_client(sync_client=True) as client:
            found = {name: client.read_flow_run(self.ids[name]).state.name for name in ("outer", "inner")}  # type: ignore[union-attr]
            return found | {"task": client.read_task_run(self.task_run).state.name}  # type: ignore[union-attr]

    def mlflow(self) -> dict[str, str]:
        return {name: status(self.ids[name]) for name in ("parent", "child")}


def tags(flow_run: str, store: str, kind: str) -> dict[str, str]:
    return {FLOW_RUN: flow_run, "trlm.store": store, "trlm.kind": kind}


def status(run: RunAddress) -> str:
    return mlflow.MlflowClient(tracking_uri=run.uri).get_run(run.run_id).info.status


def test_what_was_inside_a_crashed_run_is_ended_with_its_mlflow_runs(tracker: Tracker):
    left = Left(tracker, STORE, final=True)
    said = reconcile(tracker)
    assert left.states() == {"outer": "Crashed", "inner": "Crashed", "task": "Crashed"}
    assert left.mlflow() == {"parent": "KILLED", "child": "KILLED"}
    assert any("the flow run that it was part of ended as Crashed" in each for each in said)
    assert reconcile(tracker) == [], "twice is as once"


def test_a_run_that_lives_is_left_alone(tracker: Tracker):
    left = Left(tracker, "/elsewhere", final=False)
    reconcile(tracker)
    reconcile(tracker, held_store=STORE)
    assert left.states() == {"outer": "Running", "inner": "Running", "task": "Running"}
    assert left.mlflow() == {"parent": "RUNNING", "child": "RUNNING"}


def test_who_holds_the_store_ends_the_pipeline_that_held_it_before(tracker: Tracker):
    left = Left(tracker, STORE, final=False)
    reconcile(tracker, held_store=STORE)
    assert left.states() == {"outer": "Crashed", "inner": "Crashed", "task": "Crashed"}
    assert left.mlflow() == {"parent": "KILLED", "child": "KILLED"}


def test_a_run_of_another_prefect_server_is_not_ours_to_judge(tracker: Tracker):
    unknown = "11111111-2222-3333-4444-555555555555"
    run = tracker.start("theirs", params={}, tags=tags(unknown, "/theirs", "checkpoints"))
    reconcile(tracker, held_store=STORE)
    assert status(run) == "RUNNING"


@pytest.mark.parametrize(("kind", "ends_as"), [("pipeline", "KILLED"), ("checkpoints", "RUNNING")])
def test_of_an_unknown_flow_run_only_the_pipeline_that_held_our_store_is_known_to_be_dead(tracker: Tracker, kind: str, ends_as: str):
    run = tracker.start("ours", params={}, tags=tags("11111111-2222-3333-4444-555555555556", "host:/ours", kind))
    reconcile(tracker, held_store="host:/ours")
    assert status(run) == ends_as
