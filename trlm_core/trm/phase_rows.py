"""The rows that a phase is trained on: as one table of tokens, and with the language model's states over them.

N rows, B of them in a step, L positions of a prompt, C of a thought, D the language model's width, M latents, d the TRM's width.
"""
# ruff: noqa: N815 - tensor names carry their shape

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import ThoughtBatch, ThoughtRow, collate

ROWS_AT_ONCE = 64  # where nothing is trained


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

    def batches(self, numbers: Sequence[int] | None = None, size: int = ROWS_AT_ONCE) -> Iterator[tuple[list[int], ThoughtBatch]]:
        """Every row once, or these, in order."""
        numbers = range(len(self)) if numbers is None else numbers
        for first in range(0, len(numbers), size):
            some = list(numbers[first : first + size])
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
def latents_of(model: LatentThoughtModel, table: RowTable, states: ReadStates, numbers: Sequence[int] | None = None) -> Latents:
    """Of every row, or of these; in memory, float32."""
    device, pre, post = model.thinker.trm.slots_Md.device, [], []
    for some, batch in table.batches(numbers):
        batch = batch.to(device)
        read = states(some, batch)
        pre.append(model.thinker.trm.compressor(read.pre_BLD, batch.prompt_mask_BL).float().cpu())
        post.append(model.thinker.trm.compressor(read.post_BCD, batch.thought_mask_BC).float().cpu())
    return Latents(torch.cat(pre), torch.cat(post))


def _picked(ids_NS: Tensor, mask_NS: Tensor, numbers_B: Tensor) -> tuple[Tensor, Tensor]:
    mask_BS = mask_NS[numbers_B]
    used_S = mask_BS.any(dim=0)
    return ids_NS[numbers_B][:, used_S], mask_BS[:, used_S]
