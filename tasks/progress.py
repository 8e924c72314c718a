"""Progress of long work: a bar with an estimate in the terminal, and a Prefect progress artifact in the UI."""

import contextlib
import time
from collections.abc import Callable, Iterator
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from tqdm import tqdm

UI_SECONDS = 3.0  # between two updates of the UI


class Bar:
    """Called with (done, total, note)."""

    def __init__(self, label: str, unit: str) -> None:
        self._bar: tqdm = tqdm(desc=label, unit=unit, total=0, dynamic_ncols=True, leave=True)
        artifact = create_progress_artifact(progress=0.0, key=None, description=label)
        assert isinstance(artifact, UUID)
        self._artifact = artifact
        self._shown = 0.0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        self._bar.total = total
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if done == total or time.monotonic() - self._shown > UI_SECONDS:
            update_progress_artifact(self._artifact, progress=100.0 * done / max(total, 1))
            self._shown = time.monotonic()

    def close(self) -> None:
        self._bar.close()


@contextlib.contextmanager
def bar(label: str, unit: str) -> Iterator[Callable[..., None]]:
    shown = Bar(label, unit)
    try:
        yield shown
    finally:
        shown.close()
