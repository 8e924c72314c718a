"""Answers after a thought: in latents, in text, or none.

    latent    x <think> | u u u u | </think> a          the TRM thinks, wherever the model writes <think>
    text      x <think> c c c </think> a                the model writes its thought itself
    off       x <think> </think> a                      an empty thought

B batch, L positions, M latents, d the TRM's width, D the language model's, S supervision steps.
"""
# ruff: noqa: N815 - tensor names carry their shape

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig

from trlm_core.trm.hidden_states import adapters_off, embed, embedding_table, plain

if TYPE_CHECKING:
    from trlm_core.trm.latent_thought_model import LatentThoughtModel

Thinking = Literal["latent", "text", "off"]
MOST_THOUGHTS = 4  # of a row: a model that writes <think> again and again would never answer


@dataclass(frozen=True)
class Decoding:
    max_new_tokens: int
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class RowThought:
    """One thought of one row."""

    v_Md: Tensor
    steps: int
    p_halt_S: list[float]  # after each step that the batch took


@dataclass
class GeneratedRow:
    prompt: list[int]  # ends in <think>
    new: list[int] = field(default_factory=list)  # what the model wrote; where it thought in latents, a literal <think></think>
    thoughts: list[RowThought] = field(default_factory=list)

    @property
    def sequence(self) -> list[int]:
        return [*self.prompt, *self.new]


@dataclass(frozen=True)
class _Embeds:
    """Of the same tokens and thoughts: as pass 1 reads them, without adapters, and as pass 2 does."""

    own_LD: Tensor
    read_LD: Tensor

    def __add__(self, other: "_Embeds") -> "_Embeds":
        return _Embeds(torch.cat([self.own_LD, other.own_LD]), torch.cat([self.read_LD, other.read_LD]))

    def __getitem__(self, mask_L: Tensor) -> "_Embeds":
        return _Embeds(self.own_LD[mask_L], self.read_LD[mask_L])


@dataclass
class _Writing:
    """A row that is not done: all that the model has before it, and what it may still write."""

    row: GeneratedRow
    before: _Embeds
    left: int


@torch.no_grad()
def generate(
    model: "LatentThoughtModel",
    input_ids: Tensor,
    attention_mask: Tensor,
    decoding: Decoding,
    thinking: Thinking,
    thought_steps: int | None,
    halting: bool | None,
) -> list[GeneratedRow]:
    """A row for each prompt [B, L], pads on either side; `<think>` is added to a prompt that does not end in it."""
    prompts = [ids_L[mask_L.bool()].tolist() for ids_L, mask_L in zip(input_ids, attention_mask, strict=True)]
    rows = [GeneratedRow(ids if ids[-1:] == [model.tokens.think] else [*ids, model.tokens.think]) for ids in prompts]
    if thinking == "latent":
        _think_and_answer(model, rows, decoding, thought_steps, halting)
    else:
        tail = [model.tokens.end_think] if thinking == "off" else []
        prompts_LD = [_embeds_of(model, [*row.prompt, *tail]).read_LD for row in rows]
        for row, new in zip(rows, _written(model, prompts_LD, decoding, [model.tokens.eos]), strict=True):
            row.new = [*tail, *new]
    return rows


def _think_and_answer(
    model: "LatentThoughtModel", rows: Sequence[GeneratedRow], decoding: Decoding, steps: int | None, halting: bool | None
) -> None:
    writing = [_Writing(row, _embeds_of(model, row.prompt), decoding.max_new_tokens) for row in rows]
    for nth in range(MOST_THOUGHTS):
        _append_thoughts(model, writing, decoding, steps, halting)
        ends = [model.tokens.eos, model.tokens.think] if nth < MOST_THOUGHTS - 1 else [model.tokens.eos]
        _append_text(model, writing, decoding, ends)
        writing = [each for each in writing if each.left and each.row.new[-1:] == [model.tokens.think]]
        if not writing:
            break


def _append_thoughts(
    model: "LatentThoughtModel", writing: Sequence[_Writing], decoding: Decoding, steps: int | None, halting: bool | None
) -> None:
    own_BLD, mask_BL = left_padded([each.before.own_LD for each in writing])
    read_BLD, _ = left_padded([each.before.read_LD for each in writing])
    prompt = model.encode_embeds(own_BLD, read_BLD, mask_BL)
    window_BL = model.window(prompt, model.config.states.num_latents, room=1 + max(each.left for each in writing))
    thought = model.think(prompt, steps, halting)
    for b, each in enumerate(writing):
        u_MD = thought.u_BMD[b].to(read_BLD.dtype)
        kept_L = window_BL[b][mask_BL[b]]
        each.before = each.before[kept_L] + _Embeds(u_MD, u_MD) + _embeds_of(model, [model.tokens.end_think])
        p_halt_S = thought.q_logits_BS[b].sigmoid().tolist()
        each.row.thoughts.append(RowThought(thought.v_BMd[b], int(thought.steps_B[b]), p_halt_S))
        each.row.new.append(model.tokens.end_think)


def _append_text(model: "LatentThoughtModel", writing: Sequence[_Writing], decoding: Decoding, ends: list[int]) -> None:
    most = Decoding(max(each.left for each in writing), decoding.do_sample, decoding.temperature, decoding.top_p)
    for each, new in zip(writing, _written(model, [each.before.read_LD for each in writing], most, ends), strict=True):
        new = new[: each.left]
        each.row.new += new
        each.left -= len(new)
        each.before = each.before + _embeds_of(model, new)


def _written(model: "LatentThoughtModel", prompts_LD: Sequence[Tensor], decoding: Decoding, ends: list[int]) -> list[list[int]]:
    """What the language model writes after each, up to the first of `ends`, with it."""
    embeds_BLD, mask_BL = left_padded(prompts_LD)
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p} if decoding.do_sample else {}
    # Not the checkpoint's own settings: many ship a temperature, and a measured answer must not depend on it.
    settings = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens, do_sample=decoding.do_sample, eos_token_id=ends, pad_token_id=model.tokens.pad, **sampling
    )
    inputs = {"inputs_embeds": embeds_BLD, "attention_mask": mask_BL.long()}
    new_BA = plain(model.base).generate(**inputs, generation_config=settings)  # type: ignore[operator]
    return [_up_to_first(ids, ends) for ids in new_BA.tolist()]


def _up_to_first(ids: list[int], ends: list[int]) -> list[int]:
    at = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: at + 1]


def _embeds_of(model: "LatentThoughtModel", ids: list[int]) -> _Embeds:
    ids_L = torch.tensor(ids, dtype=torch.long, device=embedding_table(model.base).device)
    with adapters_off(model.base):
        own_LD = embed(model.base, ids_L)
    return _Embeds(own_LD, embed(model.base, ids_L))


def left_padded(rows_LD: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[B, L, D] with zeros before the shorter rows, and the mask [B, L]."""
    longest = max(len(row_LD) for row_LD in rows_LD)
    embeds_BLD = torch.stack([torch.cat([row_LD.new_zeros(longest - len(row_LD), row_LD.shape[1]), row_LD]) for row_LD in rows_LD])
    lengths_B1 = torch.tensor([[len(row_LD)] for row_LD in rows_LD], device=embeds_BLD.device)
    return embeds_BLD, torch.arange(longest, device=embeds_BLD.device) >= longest - lengths_B1
