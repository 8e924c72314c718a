"""The rows that a phase is trained on: as one table of tokens, and with the language model's states over them.

N rows, B of them in a step, L positions of a prompt, C of a thought, D the language model's width, M latents, d the TRM's width.
"""
# ruff: noqa: N815 - tensor names carry their shape

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import ThoughtBatch, ThoughtRow, collate

ROWS_AT_ONCE, TOKENS_AT_ONCE = 64, 16_384  # where nothing is trained; tokens are padded ones


@dataclass(frozen=True)
class States:
    """Under the frozen language model; columns are those of the batch."""

    pre_BLD: Tensor  # of the prompt
    post_BCD: Tensor  # of the thought in text, with its </think>


ReadStates = Callable[[Sequence[int], ThoughtBatch], States]


@dataclass(frozen=True)
class RowTable:
    """Rows padded once, so that a step only picks them."""

    rows: Sequence[ThoughtRow]
    everything: ThoughtBatch

    @classmethod
    def of(cls, rows: Sequence[ThoughtRow], tokens: ThinkTokens) -> "RowTable":
        return cls(rows, collate(rows, tokens))

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, numbers: Sequence[int]) -> ThoughtBatch:
        """As `collate` of these rows would pad them."""
        picked, whole = torch.as_tensor(numbers, dtype=torch.long), self.everything
        return ThoughtBatch(
            *_picked(whole.prompt_ids_BL, whole.prompt_mask_BL, picked),
            *_picked(whole.thought_ids_BC, whole.thought_mask_BC, picked),
            *_picked(whole.answer_ids_BA, whole.answer_mask_BA, picked),
        )

    def batches(self, numbers: Sequence[int] | None = None, tokens: int = TOKENS_AT_ONCE) -> Iterator[tuple[list[int], ThoughtBatch]]:
        """Every row once, or these, in order; as many at once as so many tokens allow, and one at least."""
        some: list[int] = []
        longest = (0, 0, 0)
        for number in range(len(self)) if numbers is None else numbers:
            own = _lengths(self.rows[number])
            longer = (max(longest[0], own[0]), max(longest[1], own[1]), max(longest[2], own[2]))
            if some and (len(some) == ROWS_AT_ONCE or (len(some) + 1) * sum(longer) > tokens):
                yield some, self.batch(some)
                some, longer = [], own
            some, longest = [*some, number], longer
        if some:
            yield some, self.batch(some)


def live_states(model: LatentThoughtModel) -> ReadStates:
    """Computed where they are needed: one pass over prompt and thought gives both, since a state sees nothing that comes after it."""

    def read(numbers: Sequence[int], batch: ThoughtBatch) -> States:
        ids_BS = torch.cat([batch.prompt_ids_BL, batch.thought_ids_BC], dim=1)
        h_BSD = model.encode(ids_BS, torch.cat([batch.prompt_mask_BL, batch.thought_mask_BC], dim=1))
        length = batch.prompt_ids_BL.shape[1]
        return States(h_BSD[:, :length], h_BSD[:, length:])

    return read


@dataclass(frozen=True)
class Latents:
    """What the compressor makes of a table's rows: once it is frozen, all that is needed of their states."""

    pre_NMd: Tensor
    post_NMd: Tensor


@torch.no_grad()
def latents_of(
    model: LatentThoughtModel, table: RowTable, states: ReadStates, numbers: Sequence[int] | None = None, folder: Path | None = None
) -> Latents:
    """Of every row, or of these, float32; in memory, or in files of the folder that are mapped: 48,000 thoughts of a 3B model are 50 GB."""
    trm, numbers = model.thinker.trm, range(len(table)) if numbers is None else numbers
    pre_NMd, post_NMd = (_room(len(numbers), trm.slots_Md, folder and folder / f"latents-{name}.bin") for name in ("pre", "post"))
    first = 0
    for some, batch in table.batches(numbers):
        batch = batch.to(trm.slots_Md.device)
        read, place = states(some, batch), slice(first, first + len(some))
        pre_NMd[place] = trm.compressor(read.pre_BLD, batch.prompt_mask_BL).float().cpu()
        post_NMd[place] = trm.compressor(read.post_BCD, batch.thought_mask_BC).float().cpu()
        first += len(some)
    return Latents(pre_NMd, post_NMd)


def _lengths(row: ThoughtRow) -> tuple[int, int, int]:
    """Of what a batch pads by itself; the thought's with its </think>."""
    return len(row.prompt), len(row.thought) + 1, len(row.answer)


def _room(rows: int, slots_Md: Tensor, path: Path | None) -> Tensor:
    """[rows, M, d], to be filled. A file that is there is written over."""
    shape = (rows, *slots_Md.shape)
    return torch.empty(shape) if path is None else torch.from_file(str(path), shared=True, size=math.prod(shape)).view(shape)


def _picked(ids_NS: Tensor, mask_NS: Tensor, numbers_B: Tensor) -> tuple[Tensor, Tensor]:
    mask_BS = mask_NS[numbers_B]
    used_S = mask_BS.any(dim=0)
    return ids_NS[numbers_B][:, used_S], mask_BS[:, used_S]
