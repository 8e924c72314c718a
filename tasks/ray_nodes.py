"""Ray's task runner for sources: over all nodes, without taking Prefect's way to cancel, and with the last words of each task.

Imports Ray, which is an extra and reads its environment when it is imported.
"""

import concurrent.futures
import signal
import threading
from typing import Any, Self

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from prefect_ray import RayTaskRunner
from prefect_ray.context import remote_options
from prefect_ray.task_runners import PrefectRayFuture

LAST_WORDS_SECONDS = 20


class RayFuture(PrefectRayFuture[Any]):
    def wait(self, timeout: float | None = None) -> None:
        # Not in Ray's own code: a signal that arrives there becomes an error of the task, and the run goes on.
        concurrent.futures.wait([self.wrapped_future.future()], timeout)
        super().wait(timeout)


class RayNodes(RayTaskRunner[Any]):
    def __enter__(self) -> Self:
        handler = signal.getsignal(signal.SIGTERM)
        super().__enter__()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in the place of Prefect's, which cancels a run
        return self

    def submit(self, *arguments: Any, **named: Any) -> Any:
        with remote_options(scheduling_strategy="SPREAD"):  # Ray's own strategy fills one node before the next
            future = super().submit(*arguments, **named)
        return RayFuture(task_run_id=future.task_run_id, wrapped_future=future.wrapped_future)

    @staticmethod
    def _run_prefect_task(*arguments: Any, **named: Any) -> Any:
        try:
            return RayTaskRunner._run_prefect_task(*arguments, **named)
        finally:  # Prefect sends logs and states in batches; Ray may end this process as soon as the task is done
            APILogHandler().flush()
            EventsWorker.drain_all(timeout=LAST_WORDS_SECONDS)
