"""Reconciling: what a killed process left Running in Prefect and MLflow is ended, with the reason in its message."""

from collections.abc import Iterator
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterParentTaskRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from trlm_core.tracking import OpenRun, Tracker, finish

FLOW_RUN = "prefect.flow_run_id"  # tag of every MLflow run
PAGE = 200
ALIVE = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
CUT_SHORT = [StateType.CRASHED, StateType.CANCELLED]  # others report their task runs, which may reach the server after them
ENDS = {StateType.COMPLETED: "FINISHED", StateType.FAILED: "FAILED"}  # of MLflow; else KILLED


def reconcile(tracker: Tracker, held_store: str | None = None) -> list[str]:
    """End what dead runs left open, and say what in words. `held_store`: the store that the caller holds, so that no other pipeline can."""
    with get_client(sync_client=True) as client:
        ended = [] if held_store is None else list(_dead_pipelines(client, tracker, held_store))
        ended += _orphaned_flow_runs(client)
        ended += _orphaned_task_runs(client)
        return ended + list(_left_open(client, tracker))


def _dead_pipelines(client: SyncPrefectClient, tracker: Tracker, store: str) -> Iterator[str]:
    """Pipelines that say they run on the store that we hold: their processes are gone."""
    for run in tracker.open_runs():
        if run.tags.get("trlm.kind") != "pipeline" or run.tags.get("trlm.store") != store:
            continue
        flow_run = _flow_run(client, run)
        if flow_run is not None and flow_run.state is not None and not flow_run.state.is_final():
            yield _crash(client, flow_run, "its process is gone: another run holds its store")
        yield _closed(run, "KILLED")


def _orphaned_flow_runs(client: SyncPrefectClient) -> list[str]:
    """Runs inside a flow run that is over. What a deployment started runs elsewhere, and may outlive its parent."""
    inside_others = FlowRunFilter(
        state=_flow_state(ALIVE),
        parent_task_run_id=FlowRunFilterParentTaskRunId(is_null_=False),
        deployment_id=FlowRunFilterDeploymentId(is_null_=True),
    )
    inside = client.read_flow_runs(flow_run_filter=inside_others, limit=PAGE)
    parents = {run.id: _parent(client, run) for run in inside}
    dead = [run for run in inside if (state := parents[run.id]) is not None and state.is_final()]
    ended = [_crash(client, run, f"the flow run that it was part of ended as {parents[run.id].name}") for run in dead]  # type: ignore[union-attr]
    return ended + _orphaned_flow_runs(client) if ended else []  # what ran inside these


def _orphaned_task_runs(client: SyncPrefectClient) -> list[str]:
    alive = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=ALIVE)))
    left = client.read_task_runs(task_run_filter=alive, flow_run_filter=FlowRunFilter(state=_flow_state(CUT_SHORT)), limit=PAGE)
    for run in left:
        client.set_task_run_state(run.id, Crashed(message="the flow run that it was part of is over"), force=True)
    ended = [f"task run {run.name}: Crashed" for run in left]
    return ended + _orphaned_task_runs(client) if len(left) == PAGE else ended


def _left_open(client: SyncPrefectClient, tracker: Tracker) -> Iterator[str]:
    """MLflow runs whose flow run is over. One that this Prefect server does not know is not ours to judge."""
    for run in tracker.open_runs():
        flow_run = _flow_run(client, run)
        if flow_run is not None and flow_run.state is not None and flow_run.state.is_final():
            yield _closed(run, ENDS.get(flow_run.state.type, "KILLED"))


def _closed(run: OpenRun, status: str) -> str:
    finish(run.address, status)
    return f"MLflow run {run.name}: {status}"


def _crash(client: SyncPrefectClient, run: FlowRun, why: str) -> str:
    client.set_flow_run_state(run.id, Crashed(message=why), force=True)
    return f"flow run {run.name}: Crashed, {why}"


def _flow_run(client: SyncPrefectClient, run: OpenRun) -> FlowRun | None:
    if FLOW_RUN not in run.tags:
        return None
    try:
        return client.read_flow_run(UUID(run.tags[FLOW_RUN]))
    except ObjectNotFound:
        return None


def _parent(client: SyncPrefectClient, run: FlowRun) -> State | None:
    """State of the flow run that this one runs inside."""
    assert run.parent_task_run_id is not None
    flow_run_id = client.read_task_run(run.parent_task_run_id).flow_run_id
    return None if flow_run_id is None else client.read_flow_run(flow_run_id).state


def _flow_state(types: list[StateType]) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=types))
