"""A deployment's run on another work pool: started once, followed to its end, cancelled when we are."""

import time
from typing import Any

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType
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


def run_elsewhere(deployment: str, parameters: dict[str, Any], fingerprint: str) -> FlowRun:
    """The deployment's completed run. One that is under way for this fingerprint is joined, never doubled.

    Raises RunCancelledError where it was cancelled, ElsewhereFailedError where it failed or crashed.
    """
    run = _under_way(deployment, parameters, fingerprint)
    try:
        ended = _followed(deployment, run)
    except Exception:
        raise
    except BaseException:
        _cancel_if_we_are(run)
        raise
    assert ended.state is not None
    if ended.state.type == StateType.COMPLETED:
        return ended
    words = f"{deployment} (flow run {ended.name}) ended as {ended.state.name}: {ended.state.message or 'no reason given'}"
    raise RunCancelledError(words) if ended.state.type == StateType.CANCELLED else ElsewhereFailedError(words)


def _under_way(deployment: str, parameters: dict[str, Any], fingerprint: str) -> FlowRun:
    """The key is fingerprint and attempt: two pipelines that start the same attempt get the same run."""
    tag = f"fingerprint:{fingerprint[:12]}"
    with get_client(sync_client=True) as client:
        attempts = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[tag])))
    alive = [run for run in attempts if not _is_over(run)]
    if alive:
        get_run_logger().info("%s: joined flow run %s, which is under way", deployment, alive[0].name)
        return alive[0]
    run = run_deployment(deployment, parameters=parameters, timeout=0, tags=[tag], idempotency_key=f"{fingerprint}/{len(attempts)}")
    assert isinstance(run, FlowRun)  # a coroutine only where it is called from one
    return run


def _followed(deployment: str, run: FlowRun) -> FlowRun:
    seen = None
    with get_client(sync_client=True) as client:
        while True:
            run = client.read_flow_run(run.id)
            assert run.state is not None
            if _is_over(run):
                return run
            if run.state.name != seen:
                seen = run.state.name
                get_run_logger().info("%s: flow run %s is %s %s", deployment, run.name, seen, WAITING.get(seen or "", ""))
            time.sleep(POLL_SECONDS)


def _cancel_if_we_are(run: FlowRun) -> None:
    """A worker that is only shut down leaves the run elsewhere alone: the next pipeline run joins it."""
    with get_client(sync_client=True) as client:
        own = client.read_flow_run(this_run.id)
        if own.state is None or own.state.type not in {StateType.CANCELLING, StateType.CANCELLED}:
            return
        if not _is_over(client.read_flow_run(run.id)):
            client.set_flow_run_state(run.id, Cancelling(message=f"the pipeline {own.name} that started it was cancelled"))


def _is_over(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()
