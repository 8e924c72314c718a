"""Answers that a language model writes after given latents: one thought can serve a whole group of them.

B batch, L positions of a prompt, M latents, D the language model's width, V its vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from trlm_core.trm.hidden_states import embed, position_ids
from trlm_core.trm.latent_thought_model import EncodedPrompt, LatentThoughtModel, copy_of
from trlm_core.trm.thought_data import ThoughtRow

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Writing:
    max_new_tokens: int
    temperature: float | None  # None: the likeliest token


def chosen(prompt: EncodedPrompt, numbers_B: Tensor) -> EncodedPrompt:
    """These rows of an encoded prompt, in this order; a row may come several times."""
    cache = prompt.cache
    if cache is not None:
        cache = copy_of(cache)
        cache.batch_select_indices(numbers_B)
    return EncodedPrompt(prompt.embeds_BLD[numbers_B], prompt.mask_BL[numbers_B], prompt.h_BLD[numbers_B], cache)


@torch.no_grad()
def write_answers(model: LatentThoughtModel, prompt: EncodedPrompt, u_BMD: Tensor, writing: Writing) -> list[Ids]:
    """What each row writes after prompt | u | `</think>`, up to its EOS, with it. M may be 0: no thought. Draws as torch is seeded."""
    tail_BTD = model.continue_after(u_BMD, torch.empty(len(u_BMD), 0, dtype=torch.long, device=u_BMD.device))
    window_BL = model.window(prompt, u_BMD.shape[1], room=1 + writing.max_new_tokens)
    mask_BS = torch.cat([window_BL, torch.ones(tail_BTD.shape[:2], dtype=torch.bool, device=u_BMD.device)], dim=1)
    if prompt.cache is not None and torch.equal(window_BL, prompt.mask_BL):
        new_BA = _written(model, tail_BTD, mask_BS, copy_of(prompt.cache), writing)
    else:
        new_BA = _written(model, torch.cat([prompt.embeds_BLD, tail_BTD], dim=1), mask_BS, DynamicCache(config=model.base.config), writing)
    return _cut(new_BA, model.tokens.eos)


def _written(model: LatentThoughtModel, input_BTD: Tensor, mask_BS: Tensor, cache: Cache, writing: Writing) -> Tensor:
    """[B, at most max_new_tokens]; what follows a row's EOS means nothing."""
    done_B = torch.zeros(len(mask_BS), dtype=torch.bool, device=mask_BS.device)
    new: list[Tensor] = []
    for _ in range(writing.max_new_tokens):
        positions_BT = position_ids(mask_BS)[:, -input_BTD.shape[1] :]
        output = model.base(
            inputs_embeds=input_BTD,
            attention_mask=mask_BS.long(),
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        new.append(_next_token(output.logits[:, -1].float(), writing.temperature))
        done_B = done_B | (new[-1] == model.tokens.eos)
        if done_B.all():
            break
        input_BTD = embed(model.base, new[-1].unsqueeze(1))
        mask_BS = torch.cat([mask_BS, torch.ones_like(mask_BS[:, :1])], dim=1)
    return torch.stack(new, dim=1)


def _next_token(logits_BV: Tensor, temperature: float | None) -> Tensor:
    if temperature is None:
        return logits_BV.argmax(dim=-1)
    return torch.multinomial((logits_BV / temperature).softmax(dim=-1), 1).squeeze(1)


def _cut(new_BA: Tensor, eos: int) -> list[Ids]:
    return [up_to_eos(ids, eos) for ids in new_BA.tolist()]


def up_to_eos(ids: Sequence[int], eos: int) -> Ids:
    """With the EOS; all of them where none comes."""
    return tuple(ids[: ids.index(eos) + 1]) if eos in ids else tuple(ids)


def longest_answer(rows: Sequence[ThoughtRow]) -> int:
    return max(len(row.answer) for row in rows)


def exact(answers: Sequence[Ids], rows: Sequence[ThoughtRow]) -> list[bool]:
    """Whether each is its row's answer to the last token, EOS included."""
    return [answer == row.answer for answer, row in zip(answers, rows, strict=True)]
