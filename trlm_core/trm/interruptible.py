"""Work that is interrupted between its steps, never within one: what is done is saved before the process ends.

The work runs in a thread of its own, and the main thread waits for it. Python raises a signal's exception in the main thread: Ctrl-C's, and
Prefect's, which tells a cancelled run from a crashed one by its own handler of SIGTERM, in whose place no other may be.
"""

import contextlib
import contextvars
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from types import FrameType
from typing import NoReturn, TypeVar

from trlm_core.training.errors import StoppedError

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
Result = TypeVar("Result")
IsStopped = Callable[[], bool]


def interruptible(work: Callable[[IsStopped], Result]) -> Result:
    """What `work(is_stopped)` returns. It asks after every step; told to stop, it saves what is done and raises StoppedError.

    The interruption goes on once that is over; a second one does not wait for it.
    """
    stop, future = threading.Event(), Future[Result]()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work(stop.is_set))
        except BaseException as error:
            future.set_exception(error)

    # Prefect's run and MLflow's, which progress is shown under, are in the context. A daemon: it keeps no process that is in a hurry.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="interruptible", daemon=True)
    with _sigterm_raises():
        try:
            thread.start()
            _wait_for(future)
            return future.result()
        except BaseException:
            if not future.done() and not future.cancel():  # it has begun, and this is not its own error
                stop.set()
                _wait_for(future)
                _tell_unless_stopped(future.exception())
            raise


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Where nobody handles it, SIGTERM would end the process at once."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise_stopped)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _wait_for(future: Future[Result]) -> None:
    """In short waits: a signal that another thread has received does not wake this one, which has to raise its exception."""
    while not wait([future], POLL_SECONDS).done:
        pass


def _raise_stopped(number: int, frame: FrameType | None) -> NoReturn:
    raise StoppedError("asked to stop by SIGTERM; what is done is saved, run it again to go on")


def _tell_unless_stopped(error: BaseException | None) -> None:
    """What went wrong while it stopped: the interruption is what is raised."""
    if error is not None and not isinstance(error, StoppedError):
        logger.error("asked to stop, and what was under way failed: %s", error, exc_info=error)
