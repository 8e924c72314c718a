"""Padding-free micro-batches: sequences end to end in one row, where attention can be told where each begins.

Two rows of 3 and 2 tokens -> input_ids (1, 5), position_ids [[0, 1, 2, 0, 1]], cu_seq_lens_q [0, 3, 5], max_length_q 3, no attention_mask.

For SFT alone: TRL 1.16's DPOTrainer has no padding-free (it warns and pads); its pairs are padded, sorted by length.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DataCollatorWithFlattening
from transformers.utils.import_utils import is_flash_attn_2_available

FLASH = "flash_attention_2"  # in transformers' words; on ROCm too
AMPERE = (8, 0)  # the oldest NVIDIA generation that it is made for

_flatten = DataCollatorWithFlattening(return_flash_attn_kwargs=True)


def variable_length_attention(device: str) -> str | None:
    """The attention that takes sequences end to end without a mask of their squares: flash-attention, installed or from `kernels`.

    None: this device has none, and micro-batches are padded. With `kernels` alone its files are fetched from the Hub, in the version
    that transformers names, or found in the Hub's cache.
    """
    if device != "cuda" or not (torch.version.hip or torch.cuda.get_device_capability() >= AMPERE):
        return None
    return FLASH if is_flash_attn_2_available(kernels_fallback_ok=True) else None


def cut_laid(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Positions of one step's sequences, longest first, each put where `tokens` leave room first; a longer one is alone."""
    cuts: list[list[int]] = []
    room: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: (-lengths[position], position)):
        free = next((index for index, left in enumerate(room) if lengths[position] <= left), None)
        if free is None:
            cuts.append([position])
            room.append(tokens - lengths[position])
        else:
            cuts[free].append(position)
            room[free] -= lengths[position]
    return cuts


def collate_laid(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """input_ids, labels, position_ids, all (1, T), and where each sequence begins. No sequence's first token is a label of the one before.

    There is no attention_mask on purpose: with one, transformers takes the row for a single sequence.
    """
    return _flatten([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])


def laid_lengths(inputs: Mapping[str, Any]) -> list[int]:
    """Of the sequences in a row, in their order."""
    return inputs["cu_seq_lens_q"].diff().tolist()
