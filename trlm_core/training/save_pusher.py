"""The pusher of a training's saves: they go to a model repository one at a time, beside the training and never in its way.

A save that comes while another is on its way waits; a newer one takes its place. Each push is a process of its own, which can be ended
whatever it hangs in: the Hub's clients upload in threads, and Python would wait for those before it exits.
"""

import contextvars
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trlm_core.data.repository import CARD
from trlm_core.training.publish import OURS
from trlm_core.training.watch import ProcessAddress

logger = logging.getLogger(__name__)

SECONDS_BEFORE_TRIES = (0.0, 10.0, 60.0)
SECONDS_OF_A_TRY = 3600.0
POLL_SECONDS = 0.2
NEWER, CLOSED = "a newer save came first", "the training ended first"


@dataclass(frozen=True)
class PushedSave:
    step: int
    outcome: Literal["published", "passed over", "failed"]
    told: str  # address of the commit, or why there is none


@dataclass(frozen=True)
class _Held:
    """A save's files under names of our own: the training may remove the save itself meanwhile."""

    step: int
    folder: Path


class SavePusher:
    """`push` takes a save and returns at once; `close` ends what is under way and gives what became of each."""

    def __init__(self, repo: str, card: Callable[[Path, int], str]) -> None:
        self._repo, self._card = repo, card
        self._outcomes: list[PushedSave] = []
        self._waiting: _Held | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        # In this context, so that Prefect knows whose log it is.
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._work,), daemon=True, name="push-saves")
        self._thread.start()

    def push(self, folder: Path, step: int) -> None:
        """Raises nothing: what becomes of a push is no matter of the training's."""
        try:
            held = _held(folder, step)
        except OSError as error:
            self._tell(PushedSave(step, "failed", f"{folder}: {error.strerror}"))
            return
        with self._changed:
            older, self._waiting = self._waiting, held
            self._changed.notify_all()
        if older is not None:
            self._let_go(older, PushedSave(older.step, "passed over", NEWER))

    @property
    def outcomes(self) -> list[PushedSave]:
        """What became of the saves so far, in the order in which it was known."""
        return [*self._outcomes]

    def close(self) -> list[PushedSave]:
        """The outcomes, of every save that was pushed. One that is on its way may have arrived untold: the Hub knows."""
        with self._changed:
            self._is_closed = True
            left, self._waiting = self._waiting, None
            self._changed.notify_all()
        self._thread.join()
        if left is not None:
            self._let_go(left, PushedSave(left.step, "passed over", CLOSED))
        return self.outcomes

    def _work(self) -> None:
        while (held := self._next()) is not None:
            try:
                outcome = self._pushed(held)
            except Exception as error:  # whatever it is, the next save has its turn
                outcome = PushedSave(held.step, "failed", f"{type(error).__name__}: {error}")
            self._let_go(held, outcome)

    def _next(self) -> _Held | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._waiting is not None)
            held, self._waiting = self._waiting, None
            return None if self._is_closed else held

    def _pushed(self, held: _Held) -> PushedSave:
        (held.folder / CARD).write_text(self._card(held.folder, held.step))
        told: dict[str, Any] = {}
        for seconds in SECONDS_BEFORE_TRIES:
            if why := self._why_not_after(seconds):
                return PushedSave(held.step, "passed over", "; ".join(filter(None, [told.get("error"), why])))
            told = self._tried(held)
            if not told.get("may_pass"):
                break
        return PushedSave(held.step, "failed" if "error" in told else "published", told.get("error") or told["url"])

    def _why_not_after(self, seconds: float) -> str | None:
        """Waits before the next try, until another reason not to make it comes."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._waiting is not None, timeout=seconds)
            return CLOSED if self._is_closed else NEWER if self._waiting is not None else None

    def _tried(self, held: _Held) -> dict[str, Any]:
        command = [sys.executable, "-m", "trlm_core.training.save_push", str(held.folder), self._repo, str(held.step)]
        command.append(ProcessAddress.here().model_dump_json())
        environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
            if why := self._ended_because(process):
                process.kill()
                return {"error": f"{self._repo}: {why}", "may_pass": True}
            assert process.stdout is not None
            lines = process.stdout.read().decode().splitlines()
        return json.loads(lines[-1]) if lines else {"error": f"{self._repo}: the push ended with {process.returncode}", "may_pass": True}

    def _ended_because(self, process: subprocess.Popen[bytes]) -> str | None:
        """Why the process has to be ended; None once it has ended by itself."""
        until = time.monotonic() + SECONDS_OF_A_TRY
        while process.poll() is None:
            if self._is_closed:
                return CLOSED
            if time.monotonic() > until:
                return f"wanted an end of the push within {SECONDS_OF_A_TRY:g} s, got none"
            time.sleep(POLL_SECONDS)
        return None

    def _let_go(self, held: _Held, outcome: PushedSave) -> None:
        shutil.rmtree(held.folder, ignore_errors=True)
        self._tell(outcome)

    def _tell(self, outcome: PushedSave) -> None:
        self._outcomes.append(outcome)
        level = logging.WARNING if outcome.outcome == "failed" else logging.INFO
        logger.log(level, "%s, step %d: %s: %s", self._repo, outcome.step, outcome.outcome, outcome.told)


def _held(folder: Path, step: int) -> _Held:
    """Links beside the save: they cost no room until the save itself is removed."""
    held = folder.parent / f"pushed-{step:06d}"
    shutil.rmtree(held, ignore_errors=True)
    held.mkdir()
    for path in folder.iterdir():
        if OURS.fullmatch(path.name):
            os.link(path, held / path.name)
    return _Held(step, held)
