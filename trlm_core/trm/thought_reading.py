"""What a thought says after each of its steps, read out of its latents by the expander, for people to look at.

The first token of a thought is not in its latents, which begin with the state after it: it is shown as `_`.
B batch, M latents, d the TRM's width, C positions of a thought, V the vocabulary.
"""
# ruff: noqa: N815 - tensor names carry their shape

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trlm_core.trm.hidden_states import embedding_table
from trlm_core.trm.latent_thought_model import EncodedPrompt, LatentThoughtModel

FIRST = "_"
MOST_LENGTHS = 32  # that are tried where nobody knows how long a thought is


@dataclass(frozen=True)
class StepThought:
    v_BMd: Tensor  # standardised
    q_logits_B: Tensor


@torch.no_grad()
def thought_steps(model: LatentThoughtModel, prompt: EncodedPrompt, steps: int) -> Iterator[StepThought]:
    """The thought as it stands after each supervision step; no row halts."""
    trm = model.thinker.trm
    for y_BMd, q_B in trm.thoughts(trm.read(prompt.h_BLD, prompt.mask_BL), steps):
        yield StepThought(trm.head(y_BMd), q_B)


@torch.no_grad()
def read_thoughts_out(model: LatentThoughtModel, v_BMd: Tensor, mask_BC: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A text a row, up to its `</think>`; the mask says how long each thought is, `</think>` included."""
    logits_BCV = model.read(model.thinker.trm.norm.unstandardise_post(v_BMd), mask_BC)
    lengths = mask_BC.sum(dim=1).tolist()
    rows = [ids[: length - 1] for ids, length in zip(logits_BCV.argmax(dim=-1).tolist(), lengths, strict=True)]
    return [FIRST + str(tokenizer.decode(_before(ids, model.tokens.end_think))) for ids in rows]


@torch.no_grad()
def likeliest_length(model: LatentThoughtModel, v_1Md: Tensor) -> int:
    """Of a thought whose text nobody has, `</think>` included: where `</think>` is read at its end and nowhere before, as far as tried."""
    longest = 2 * model.config.states.num_latents + 2
    lengths = range(2, longest + 1, max(1, math.ceil(longest / MOST_LENGTHS)))
    return max(lengths, key=lambda length: _ends_there(model, v_1Md, length))


def _ends_there(model: LatentThoughtModel, v_1Md: Tensor, length: int) -> float:
    """Log-probability that a thought of so many positions is read as one of so many."""
    mask_1C = torch.ones(1, length, dtype=torch.bool, device=embedding_table(model.base).device)
    logits_CV = model.read(model.thinker.trm.norm.unstandardise_post(v_1Md), mask_1C)[0, : length - 1].float()
    end_C = logits_CV.log_softmax(dim=-1)[:, model.tokens.end_think].double().clamp(max=-1e-9)
    return (torch.log1p(-end_C[:-1].exp()).sum() + end_C[-1]).item()


def _before(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
