"""A deployment's run on another work pool: started once, followed to its end, cancelled when we are."""

import hashlib
import time
from typing import Any

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.runtime import flow_run as this_run
from prefect.states import Cancelling

from trlm_core.tracking import RunCancelledError

POLL_SECONDS = 2.0
WAITING = {
    "Late": "no worker of its work pool has taken it; is one started?",
    "AwaitingConcurrencySlot": "another run has the slot",
}


class ElsewhereFailedError(RuntimeError):
    """The run ended badly; the message carries its state's."""


def run_elsewhere(deployment: str, parameters: dict[str, Any], work: str) -> None:
    """Have the deployment do this work (what is made, and where it is kept). A run that does it already is joined, never doubled.

    Raises RunCancelledError where the run was cancelled, ElsewhereFailedError where it failed or crashed.
    """
    tag = f"work:{hashlib.sha256(work.encode()).hexdigest()[:12]}"
    ended_well = False
    try:
        run = _followed(deployment, _under_way(deployment, parameters, tag))
        ended_well = True
    finally:
        if not ended_well:
            _cancel_if_we_are(tag)
    assert run.state is not None
    if run.state.type != StateType.COMPLETED:
        words = f"{deployment} (flow run {run.name}) ended as {run.state.name}: {run.state.message or 'before it began'}"
        raise RunCancelledError(words) if run.state.type == StateType.CANCELLED else ElsewhereFailedError(words)


def _under_way(deployment: str, parameters: dict[str, Any], tag: str) -> FlowRun:
    """The newest run of this work where it lives; else a new one. Its key names the attempt before it, so that two who start it get one."""
    newest = _newest(tag)
    if newest is not None and not _is_over(newest):
        get_run_logger().info("%s: joined flow run %s, which is under way", deployment, newest.name)
        return newest
    key = f"{tag} after {newest.id if newest else 'none'}"
    run = run_deployment(deployment, parameters=parameters, timeout=0, tags=[tag], idempotency_key=key)
    assert isinstance(run, FlowRun)  # a coroutine only where it is called from one
    return run


def _newest(tag: str) -> FlowRun | None:
    with get_client(sync_client=True) as client:
        mine = FlowRunFilter(tags=FlowRunFilterTags(all_=[tag]))
        runs = client.read_flow_runs(flow_run_filter=mine, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
    return runs[0] if runs else None


def _followed(deployment: str, run: FlowRun) -> FlowRun:
    seen = None
    with get_client(sync_client=True) as client:
        while True:
            run = client.read_flow_run(run.id)
            if _is_over(run):
                return run
            if run.state is not None and run.state.name != seen:
                seen = run.state.name
                get_run_logger().info("%s: flow run %s is %s %s", deployment, run.name, seen, WAITING.get(seen or "", ""))
            time.sleep(POLL_SECONDS)


def _cancel_if_we_are(tag: str) -> None:
    """A worker that is only shut down leaves the run elsewhere alone: the next pipeline run joins it."""
    with get_client(sync_client=True) as client:
        own, run = client.read_flow_run(this_run.id), _newest(tag)
        cancelled = own.state is not None and own.state.type in {StateType.CANCELLING, StateType.CANCELLED}
        if cancelled and run is not None and not _is_over(run):
            client.set_flow_run_state(run.id, Cancelling(message=f"the pipeline {own.name} that waits for it was cancelled"))


def _is_over(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()
