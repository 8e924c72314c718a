"""Saves of a training under way: a folder a save, with the weights and all that the trainer needs to go on, and a sha256 for every file.

saves/step-000300/{model.safetensors, optimizer.pt, scheduler.pt, rng_state.pth, trainer_state.json, history.jsonl, save.json}
save.json: {"step": 300, "loss": 0.71, "files": {"model.safetensors": {"sha256": "...", "size": 538090408}, ...}}
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from trlm_core.artifacts.manifest import FileEntry, file_damage, file_entries
from trlm_core.artifacts.shelf import sync

logger = logging.getLogger(__name__)

SAVES = "saves"  # in a training's workspace
SAVE_NAME = "save.json"


class Save(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    loss: float | None  # mean of the steps since the save before; None where there was none to tell
    files: dict[str, FileEntry]


def keep_save(aside: Path, saves: Path, step: int, loss: float | None) -> Path:
    """Make a finished save of what was written aside: hashed, on the disk, and renamed last."""
    save = Save(step=step, loss=loss, files=file_entries(aside))
    (aside / SAVE_NAME).write_text(save.model_dump_json(indent=1))
    folder = save_folder(saves, step)
    saves.mkdir(parents=True, exist_ok=True)
    for path in (*aside.rglob("*"), aside):
        sync(path)
    aside.replace(folder)
    sync(saves)
    return folder


def newest_good(saves: Path) -> tuple[Path, Save] | None:
    """The newest save whose every byte is as it was written; damaged ones are passed over with a warning that says what is wrong."""
    for folder in _newest_first(saves):
        try:
            save = _read(folder)
        except (OSError, ValidationError) as error:
            logger.warning("%s is passed over: wanted a finished save, got %s", folder, " ".join(str(error).split()))
            continue
        wrong = [reason for name, entry in save.files.items() if (reason := file_damage(name, folder / name, entry))]
        if not wrong:
            return folder, save
        logger.warning("%s is damaged and is passed over: %s", folder, "; ".join(wrong))
    return None


def prune(saves: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the one with the lowest loss."""
    folders = [*_newest_first(saves)]
    losses = {folder: loss for folder in folders if (loss := _loss(folder)) is not None}
    best = min(losses, key=lambda folder: losses[folder]) if losses else None
    for folder in folders[keep:]:
        if folder != best:
            shutil.rmtree(folder)


def discard_after(saves: Path, step: int) -> None:
    """Remove what a resumed training does not build on: newer saves, which are damaged, would push out those that it makes."""
    for folder in _newest_first(saves):
        if _step_of(folder) > step:
            shutil.rmtree(folder)


def newest_step(saves: Path) -> int | None:
    """Of the newest save, whatever its state."""
    newest = next(_newest_first(saves), None)
    return _step_of(newest) if newest else None


def save_folder(saves: Path, step: int) -> Path:
    return saves / f"step-{step:06d}"


def _newest_first(saves: Path) -> Iterator[Path]:
    return iter(sorted(saves.glob("step-[0-9]*"), key=_step_of, reverse=True))


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _loss(folder: Path) -> float | None:
    try:
        return _read(folder).loss
    except (OSError, ValidationError):  # damaged: never the best
        return None


def _read(folder: Path) -> Save:
    return Save.model_validate_json((folder / SAVE_NAME).read_text())
