"""Steps and micro-batches: the recipe fixes the sequences of every optimizer step; the hardware only says how a step is cut.

plan_steps(5, epochs=2, sequences_per_step=2, seed=0) -> [[2, 4], [3, 0], [1, 4], ...]: row numbers, epoch after epoch, whole steps only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


def plan_steps(rows: int, *, epochs: int, sequences_per_step: int, seed: int) -> list[list[int]]:
    """Row numbers of every optimizer step: each epoch in an order of its own, joined, cut; a last part that fills no step is left out.

    Raises ValueError where not even one step can be filled.
    """
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(rows) for _ in range(epochs)])
    steps = len(order) // sequences_per_step
    if not steps:
        raise ValueError(f"wanted at least {sequences_per_step} sequences for one step, got {rows} rows in {epochs} epochs")
    return order[: steps * sequences_per_step].reshape(steps, sequences_per_step).tolist()


def cut_micro_batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Positions of one step's sequences, longest first, cut so that a micro-batch is at most `tokens` padded tokens (or one sequence)."""
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    batches: list[list[int]] = []
    for position in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


@dataclass(frozen=True)
class MicroBatch:
    inputs: dict[str, torch.Tensor]
    rows: list[int]  # row numbers in the stage dataset
    share: float  # of the step's loss: its label tokens (SFT) or pairs (DPO) over the step's


@dataclass(frozen=True)
class StepBatch:
    """All micro-batches of one optimizer step."""

    index: int
    micro_batches: list[MicroBatch]
    loss_units: int  # label tokens (SFT) or pairs (DPO)
    useful_tokens: int
    padded_tokens: int


class StepDataset(Dataset[StepBatch]):
    """One item is one optimizer step, collated and cut."""

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        steps: Sequence[Sequence[int]],
        *,
        tokens_per_micro_batch: int,
        length: Callable[[dict[str, Any]], int],  # padded length that a row asks for, times its sequences
        loss_units: Callable[[dict[str, Any]], int],
        collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
    ) -> None:
        self._rows, self._steps, self._tokens = rows, steps, tokens_per_micro_batch
        self._length, self._loss_units, self._collate = length, loss_units, collate

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> StepBatch:
        numbers = self._steps[index]
        rows = [self._rows[number] for number in numbers]
        cuts = cut_micro_batches([self._length(row) for row in rows], self._tokens)
        units = sum(self._loss_units(row) for row in rows)
        micro_batches = [self._micro_batch([rows[p] for p in cut], [numbers[p] for p in cut], units) for cut in cuts]
        return StepBatch(
            index=index,
            micro_batches=micro_batches,
            loss_units=units,
            useful_tokens=sum(int(micro.inputs["attention_mask"].sum()) for micro in micro_batches),
            padded_tokens=sum(micro.inputs["input_ids"].numel() for micro in micro_batches),
        )

    def _micro_batch(self, rows: list[dict[str, Any]], numbers: list[int], units: int) -> MicroBatch:
        share = sum(self._loss_units(row) for row in rows) / units
        return MicroBatch(inputs=self._collate(rows), rows=numbers, share=share)
