"""Progress of long work, with an estimate: a bar in a terminal, log lines where there is none, a Prefect progress artifact in the UI."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from tqdm import tqdm

UI_SECONDS = 3.0  # between two updates of the UI
LOG_SECONDS = 30.0  # between two lines of a log


class Bar:
    """Called with (done, total, note)."""

    def __init__(self, label: str, unit: str) -> None:
        self._label, self._unit = label, unit
        # A worker's log is no terminal, and its pipe may be gone: a killed worker's run goes on.
        self._bar: tqdm | None = tqdm(desc=label, unit=unit, total=0, dynamic_ncols=True, leave=True) if sys.stderr.isatty() else None
        artifact = create_progress_artifact(progress=0.0, key=None, description=label)
        assert isinstance(artifact, UUID)
        self._artifact = artifact
        self._began = self._logged = time.monotonic()
        self._shown, self._total = 0.0, 0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if total != self._total:  # the work, or its next phase, begins
            self._total, self._began = total, time.monotonic()
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
        moment = time.monotonic()
        if self._bar is None and moment - self._logged > LOG_SECONDS:
            get_run_logger().info("%s: %s", self._label, self._words(done, total, note))
            self._logged = moment
        if done == total or moment - self._shown > UI_SECONDS:
            with shown_or_not():
                update_progress_artifact(self._artifact, progress=100.0 * done / max(total, 1))
            self._shown = moment

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _words(self, done: int, total: int, note: str) -> str:
        left = (time.monotonic() - self._began) / done * (total - done) if done else None
        estimate = "" if left is None else f", about {left / 60:.0f} min left"
        return f"{done:,} of {total:,} {self._unit}s{estimate}{note and ', ' + note}"


@contextlib.contextmanager
def shown_or_not() -> Iterator[None]:
    """A page that cannot be updated (an artifact deleted by hand, a server that is away) must not end the work that it shows."""
    try:
        yield
    except (PrefectHTTPStatusError, ObjectNotFound, httpx.TransportError) as error:
        get_run_logger().warning("the page was not updated: %s", error)


@contextlib.contextmanager
def bar(label: str, unit: str) -> Iterator[Callable[..., None]]:
    shown = Bar(label, unit)
    try:
        yield shown
    finally:
        shown.close()
