"""Watching a training from outside its process: the progress file, and the end with its parent. Imports no trainer."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict

from trlm_core.artifacts.aside import write_aside

CHECK_SECONDS = 0.5


class Progress(BaseModel):
    """What the progress file says: {"phase": "training", "step": 12, "steps": 60, "done_before": 0, "seconds": 31.5, "loss": 0.71}."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: Literal["reference", "training"]  # of DPO, the reference log-probs come first: a step is a pair then
    step: int
    steps: int
    done_before: int  # steps that an earlier process did
    seconds: float  # since this process's first step of the phase began
    loss: float | None

    @property
    def seconds_left(self) -> float | None:
        done = self.step - self.done_before
        return self.seconds / done * (self.steps - self.step) if done else None


class ProcessAddress(BaseModel):
    """A process that is this one and no later one with its number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    created: float

    @classmethod
    def here(cls) -> "ProcessAddress":
        return cls(pid=os.getpid(), created=psutil.Process().create_time())

    def is_alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def end_with(parent: ProcessAddress) -> None:
    """End this process when that one is gone, so that a retry never trains beside it."""

    def watch() -> None:
        while parent.is_alive():
            time.sleep(CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def write_progress(path: Path, progress: Progress) -> None:
    write_aside(path, progress.model_dump_json())


def changed(path: Path) -> int | None:
    """When the progress file was last written or touched, in ns."""
    return path.stat().st_mtime_ns if path.exists() else None


def read_progress(path: Path) -> Progress | None:
    return Progress.model_validate(json.loads(path.read_text())) if path.exists() else None
