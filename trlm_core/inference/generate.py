"""Replies to many prompts: batches of like length, left-padded, greedy or sampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 4096  # prompt and new tokens of a batch: what a CPU decodes at once without slowing down


@dataclass(frozen=True)
class Generated:
    text: str  # special tokens kept, but for the end of the turn
    tokens: int
    ended: bool  # by an end-of-turn token, not by the limit


@torch.no_grad()
def generate_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    sequences_per_batch: int | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[Generated]:
    """One greedy reply a prompt (token ids that end with the generation prompt), in the order of the prompts."""
    model.eval()
    replies: list[Generated | None] = [None] * len(prompts)
    for positions in _batches([len(prompt) for prompt in prompts], max_new_tokens, sequences_per_batch):
        batch = _left_padded([prompts[position] for position in positions], _pad(tokenizer))
        out_BL = model.generate(  # type: ignore[operator]
            **{key: value.to(model.device) for key, value in batch.items()},
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=_pad(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
        )
        for position, ids in zip(positions, out_BL[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            replies[position] = _generated(tokenizer, ids)
        on_batch(len(positions))
    return [reply for reply in replies if reply is not None]


def _generated(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Generated:
    end = tokenizer.eos_token_id
    kept = ids[: ids.index(end)] if end in ids else ids
    return Generated(text=str(tokenizer.decode(kept)), tokens=len(kept) + (end in ids), ended=end in ids)


def _batches(lengths: Sequence[int], new: int, sequences: int | None) -> list[list[int]]:
    order = sorted(range(len(lengths)), key=lambda position: (lengths[position], position))
    batches: list[list[int]] = []
    for position in order:
        limit = sequences or max(1, BATCH_TOKENS // (lengths[position] + new))
        if batches and len(batches[-1]) < limit:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def _left_padded(prompts: Sequence[list[int]], pad: int) -> dict[str, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _pad(tokenizer: PreTrainedTokenizerBase) -> int:
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    return pad
