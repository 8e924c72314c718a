"""Training a language model on thoughts as text, by a number of steps: whole batches with their thought, whole batches without.

with       prompt <think> c c c </think> a a EOS      labels from the first c on
without    prompt <think> </think> a a EOS            labels from the first a on: it is not to close a thought at once
B batch, L positions.
"""
# ruff: noqa: N815 - tensor names carry their shape

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trlm_core.recipes.trm_schema import Schedule
from trlm_core.text.tokenizer import IGNORED
from trlm_core.training.errors import BadStepError, StoppedError
from trlm_core.trm.interruptible import IsStopped, interruptible
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import BatchOrder, ThoughtRow, padded

logger = logging.getLogger(__name__)

SAVE = "text_training.pt"  # in the workspace: what an interrupted training goes on from
STEPS_PER_SAVE, SECONDS_PER_SAVE = 200, 120.0  # whichever comes first
History = list[dict[str, float]]
OnStep = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class TextTraining:
    schedule: Schedule
    thought_share: float  # of the steps, spread evenly
    seed: int

    def has_thought(self, step: int) -> bool:
        return math.floor((step + 1) * self.thought_share) > math.floor(step * self.thought_share)


@dataclass(frozen=True)
class TextBatch:
    ids_BL: Tensor  # right padded
    mask_BL: Tensor
    labels_BL: Tensor


def text_batch(rows: Sequence[ThoughtRow], tokens: ThinkTokens, *, with_thought: bool) -> TextBatch:
    sequences = [row.sequence(tokens) if with_thought else row.without_thought().sequence(tokens) for row in rows]
    unlabelled = [len(row.prompt) + (0 if with_thought else 1) for row in rows]
    ids_BL, mask_BL = padded(sequences, tokens.pad, side="right")
    is_labelled_BL = mask_BL & (torch.arange(ids_BL.shape[1]) >= torch.tensor(unlabelled)[:, None])
    return TextBatch(ids_BL, mask_BL, torch.where(is_labelled_BL, ids_BL, IGNORED))


def train_on_text(
    model: PreTrainedModel, rows: Sequence[ThoughtRow], tokens: ThinkTokens, training: TextTraining, workspace: Path, on_step: OnStep
) -> History:
    """Trains all of the model's weights in place, from where an earlier process was when it ended: a line a step.

    Raises BadStepError for a loss or a gradient that is not finite. Interrupted, it saves what is done.
    """
    schedule = training.schedule
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=schedule.betas, weight_decay=schedule.weight_decay)
    order = BatchOrder(len(rows), schedule.batch, training.seed)
    history = _restored(model, optimizer, workspace / SAVE)
    model.train()

    def train(is_stopped: IsStopped) -> None:
        saved = time.monotonic()
        for step in range(len(history), schedule.steps):
            chosen = [rows[number] for number in order.rows_at(step)]
            batch = text_batch(chosen, tokens, with_thought=training.has_thought(step))
            history.append(_stepped(model, optimizer, batch, schedule, step))
            stopped = is_stopped()
            if stopped or (step + 1) % STEPS_PER_SAVE == 0 or time.monotonic() - saved > SECONDS_PER_SAVE:
                _save(model, optimizer, history, workspace / SAVE)
                saved = time.monotonic()
            on_step(step + 1, schedule.steps)
            if stopped:
                raise StoppedError(f"language model: stopped after step {step + 1} of {schedule.steps}; run it again to go on")

    interruptible(train)
    model.eval()
    return history


def _stepped(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: TextBatch, schedule: Schedule, step: int) -> dict[str, float]:
    device = model.device
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate_at(step)
    output = model(input_ids=batch.ids_BL.to(device), attention_mask=batch.mask_BL.long().to(device), labels=batch.labels_BL.to(device))
    optimizer.zero_grad()
    output.loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), schedule.max_gradient_norm)
    if not math.isfinite(output.loss.item()) or not math.isfinite(norm.item()):
        got = f"got a loss of {output.loss.item()} and a gradient norm of {norm.item()}"
        raise BadStepError(f"step {step + 1}: wanted finite numbers, {got}; lower the learning rate")
    optimizer.step()
    return {"step": step + 1, "loss": output.loss.item(), "grad_norm": norm.item(), "learning_rate": schedule.rate_at(step)}


def _save(model: PreTrainedModel, optimizer: torch.optim.Optimizer, history: History, path: Path) -> None:
    aside = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}, aside)
    aside.replace(path)


def _restored(model: PreTrainedModel, optimizer: torch.optim.Optimizer, path: Path) -> History:
    """History of the steps that are done; model and optimizer as they were after them."""
    if not path.exists():
        return []
    saved: dict[str, Any] = torch.load(path, map_location=model.device, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    logger.info("going on from step %d", len(saved["history"]))
    return saved["history"]
