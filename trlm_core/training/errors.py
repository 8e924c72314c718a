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

    rows: int
    tokens: int  # padded

    @classmethod
    def of(cls, where: str, rows: list[int], shape: tuple[int, ...], error: BaseException) -> "MicroBatchTooLargeError":
        said = (str(error) or type(error).__name__).splitlines()[0]
        made = cls(f"{where}: wanted memory for {shape[0]} sequences of {shape[1]:,} tokens (rows {rows}), got: {said}")
        made.rows, made.tokens = len(rows), shape[0] * shape[1]
        return made


class GroupError(ValueError):
    """The processes of a group do not agree on what they train, or do not find what the first has."""


class TrainingFailedError(RuntimeError):
    """The training process ended badly; the message carries what it said last."""


class TrainingKilledError(TrainingFailedError):
    """The training process was killed, by a signal or for its memory: another try goes on from its last save."""


class OutOfMemoryError(TrainingFailedError):
    """A micro-batch did not fit; the next try cuts the steps smaller."""


class RendezvousError(TrainingKilledError):
    """Not every machine of the training came."""


class TrainingStalledError(TrainingKilledError):
    """It showed no progress and was ended."""


class TrainingStoppedError(TrainingKilledError):
    """Somebody asked the training process alone to stop; it has saved what is done."""


Kind = Literal["stopped", "peer_lost", "other", "out_of_memory", "full_disk", "group"]
FOLLOW: tuple[Kind, ...] = ("stopped", "peer_lost", "other")  # of another's end, the first most often: torchrun stops who is left
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")  # gloo's words


class Ending(BaseModel):
    """What a training process writes of the error that ends it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    message: str
    traceback: str
    can_be_cut: bool  # out_of_memory: the micro-batch had more than one row

    @classmethod
    def of(cls, error: BaseException, traceback: str) -> "Ending":
        can_be_cut = isinstance(error, MicroBatchTooLargeError) and error.rows > 1
        return cls(kind=_kind(error), message=str(error), traceback=traceback, can_be_cut=can_be_cut)


def write_ending(folder: Path, rank: int, ending: Ending) -> None:
    (folder / f"ending-{rank}.json").write_text(ending.model_dump_json())


def read_ending(folder: Path) -> Ending | None:
    """Of a group, the first process that has a cause: one with a name, else an error of its own; the others lost it or were stopped."""
    paths = sorted(folder.glob("ending-*.json"), key=lambda path: path.stat().st_mtime_ns)
    endings = [Ending.model_validate_json(path.read_text()) for path in paths]
    return max(endings, key=lambda ending: FOLLOW.index(ending.kind) if ending.kind in FOLLOW else len(FOLLOW), default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of torch's allocator on a CPU, which has no type for it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _kind(error: BaseException) -> Kind:
    if isinstance(error, StoppedError):
        return "stopped"
    if isinstance(error, GroupError):
        return "group"
    if is_full_disk(error):
        return "full_disk"
    if isinstance(error, MicroBatchTooLargeError):
        return "out_of_memory"
    return "peer_lost" if _is_lost_peer(error) else "other"


def _is_lost_peer(error: BaseException) -> bool:
    """Of NCCL and torch's store by their type; gloo has none for it."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error) and any(words in str(error) for words in LOST)
