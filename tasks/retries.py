"""Retries where a retry can help: a mistake in the recipe stays one, a dropped connection or a killed process need not."""

from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from trlm_core.artifacts.full_disk import is_full_disk
from trlm_core.training.errors import OutOfMemoryError, RendezvousError, StoppedError, TrainingKilledError


def unless_mistaken(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """False for a ValueError, which the core raises for what the user has to change, for what was told to stop, and for a full disk."""
    error = _error(state)
    return not (isinstance(error, ValueError | StoppedError) or is_full_disk(error))


# Of a task that asks the Hub, a bucket or a package index.
OVER_A_NETWORK: dict[str, Any] = {
    "tags": ["data"],
    "retries": 3,
    "retry_delay_seconds": 10,
    "retry_condition_fn": unless_mistaken,
    "cache_policy": NO_CACHE,
}


def if_it_can_go_on(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """True where the training process was killed, or can cut its steps smaller; what else it raised it would raise again.

    A machine that did not come was waited for: once more at most.
    """
    error = _error(state)
    if isinstance(error, RendezvousError):
        return task_run.run_count < 2
    return isinstance(error, TrainingKilledError | OutOfMemoryError)


def _error(state: State[Any]) -> BaseException | None:
    result = state.result(raise_on_failure=False)
    return result if isinstance(result, BaseException) else None
