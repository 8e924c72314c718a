"""How a training ends before its time. What the training process raises is told to its launcher by kind: errors cross as JSON."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from trlm_core.artifacts.full_disk import is_full_disk


class StoppedError(Exception):
    """It was asked to stop, and what is done can be saved."""


class BadStepError(FloatingPointError):
    """A step whose loss, labels or gradient are not as they should be, and the recipe says stop."""


class MicroBatchTooLargeError(MemoryError):
    """A micro-batch did not fit into memory."""

    sequences: int

    @classmethod
    def of(cls, step: int, rows: list[int], shape: tuple[int, ...], said: str) -> "MicroBatchTooLargeError":
        first = said.splitlines()[0]
        error = cls(f"step {step}: wanted memory for {shape[0]} sequences of {shape[1]:,} tokens (rows {rows}), got: {first}")
        error.sequences = len(rows)
        return error


class TrainingFailedError(RuntimeError):
    """The training process ended badly; the message carries what it said last."""


class TrainingKilledError(TrainingFailedError):
    """The training process was killed, by a signal or for its memory: another try goes on from its last save."""


class OutOfMemoryError(TrainingFailedError):
    """A micro-batch did not fit; the next try cuts the steps smaller."""


class TrainingStalledError(TrainingKilledError):
    """It showed no progress and was ended."""


class TrainingStoppedError(TrainingKilledError):
    """Somebody asked the training process alone to stop; it has saved what is done."""


Kind = Literal["stopped", "out_of_memory", "full_disk", "other"]


class Ending(BaseModel):
    """What a training process writes of the error that ends it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    message: str
    traceback: str
    can_be_cut: bool = False  # out_of_memory: the micro-batch had more than one sequence

    @classmethod
    def of(cls, error: BaseException, traceback: str) -> "Ending":
        can_be_cut = isinstance(error, MicroBatchTooLargeError) and error.sequences > 1
        return cls(kind=_kind(error), message=str(error), traceback=traceback, can_be_cut=can_be_cut)


def read_ending(path: Path) -> Ending | None:
    return Ending.model_validate_json(path.read_text()) if path.exists() else None


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of torch's allocator on a CPU, which has no type for it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _kind(error: BaseException) -> Kind:
    if isinstance(error, StoppedError):
        return "stopped"
    if is_full_disk(error):
        return "full_disk"
    return "out_of_memory" if isinstance(error, MicroBatchTooLargeError) else "other"
