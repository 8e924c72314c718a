"""Steps and micro-batches: the recipe fixes the sequences of every optimizer step; the hardware only says how a step is cut.

plan_steps(5, epochs=2, sequences_per_step=2, seed=0) -> [[2, 4], [3, 0], [1, 4], ...]: row numbers, epoch after epoch, whole steps only.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
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
class Share:
    """Which of a group's processes this is."""

    rank: int
    processes: int


ALONE = Share(0, 1)


def deal(batches: Sequence[list[int]], share: Share) -> list[list[int]]:
    """The micro-batches of one process of a group: as many as every other's, since a sharded model's forwards wait for one another.

    The largest are halved until the number fits: it does at last where the sequences themselves can be dealt out evenly.
    """
    dealt = [*batches]
    while len(dealt) % share.processes:
        largest = max(range(len(dealt)), key=lambda index: len(dealt[index]))
        batch = dealt[largest]
        dealt[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    return dealt[share.rank :: share.processes]


@dataclass(frozen=True)
class MicroBatch:
    inputs: dict[str, Any]  # tensors, and the longest length of sequences end to end
    rows: list[int]  # row numbers in the stage dataset
    share: float  # of the step's loss: its label tokens (SFT) or pairs (DPO) over the step's


@dataclass(frozen=True)
class StepBatch:
    """One optimizer step, with the micro-batches that this process works on."""

    index: int
    micro_batches: list[MicroBatch]
    rows: list[int]  # of the whole step
    loss_units: int  # of the whole step: label tokens (SFT) or pairs (DPO)
    useful_tokens: int  # of this process's micro-batches
    padded_tokens: int


class Rows(Protocol):
    """A dataset that is mapped from its file, or a list."""

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class StepDataset(Dataset[StepBatch]):
    """One item is one optimizer step, read, collated and cut; while it is worked on, a thread does so with the next one."""

    def __init__(
        self,
        rows: Rows,
        steps: Sequence[Sequence[int]],
        *,
        tokens_per_micro_batch: int,
        length: Callable[[dict[str, Any]], int],  # padded length that a row asks for, times its sequences
        loss_units: Callable[[dict[str, Any]], int],
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        cut: Callable[[Sequence[int], int], list[list[int]]] = cut_micro_batches,
        share: Share = ALONE,
    ) -> None:
        self._rows, self._steps, self._tokens, self._share = rows, steps, tokens_per_micro_batch, share
        self._length, self._loss_units, self._collate, self._cut = length, loss_units, collate, cut
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="next step")
        self._ahead: tuple[int, Future[StepBatch]] | None = None

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> StepBatch:
        """Raises what reading raises, when the step is asked for that it was raised in."""
        ahead, self._ahead = self._ahead, None
        step = ahead[1].result() if ahead is not None and ahead[0] == index else self._read(index)
        if index + 1 < len(self._steps):
            self._ahead = index + 1, self._reader.submit(self._read, index + 1)
        return step

    def _read(self, index: int) -> StepBatch:
        numbers = [*self._steps[index]]
        rows = [self._rows[number] for number in numbers]
        units = sum(self._loss_units(row) for row in rows)
        cuts = deal(self._cut([self._length(row) for row in rows], self._tokens), self._share)
        micro_batches = [self._micro_batch([rows[p] for p in cut], [numbers[p] for p in cut], units) for cut in cuts]
        return StepBatch(
            index=index,
            micro_batches=micro_batches,
            rows=numbers,
            loss_units=units,
            useful_tokens=sum(_useful(micro.inputs) for micro in micro_batches),
            padded_tokens=sum(micro.inputs["input_ids"].numel() for micro in micro_batches),
        )

    def singly(self, micro: MicroBatch, units: int) -> list[MicroBatch]:
        """Each row of a micro-batch as one of its own, of a step with so many loss units."""
        return [self._micro_batch([self._rows[number]], [number], units) for number in micro.rows]

    def _micro_batch(self, rows: list[dict[str, Any]], numbers: list[int], units: int) -> MicroBatch:
        share = sum(self._loss_units(row) for row in rows) / units if units else 0.0
        return MicroBatch(inputs=self._collate(rows), rows=numbers, share=share)


def _useful(inputs: dict[str, Any]) -> int:
    """Tokens that are no pads; sequences end to end have none, and no mask."""
    return int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else inputs["input_ids"].numel()
