"""NEFTune noise (arXiv 2310.05914): uniform noise of scale alpha / sqrt(length x hidden size) on the embeddings while training.

A number is a hash of its row's key, its position in that row and its feature: it depends neither on how a step is cut nor on the device.
The row's own length is taken, not the padded one. T: tokens of a micro-batch, line after line; R: rows; D: features.
"""

import contextlib
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

Place = tuple[int, int, int]  # of a sequence in a micro-batch: line, begin, end
AT_ONCE = 1 << 18  # numbers that are hashed together: a CPU's cache holds the two copies, and a GPU has enough to do


def places_of(inputs: Mapping[str, torch.Tensor]) -> list[Place]:
    """Where each sequence lies: a line of its own with pads behind it, or one line for all, end to end (packing.py)."""
    if "cu_seq_lens_q" in inputs:
        return [(0, begin, end) for begin, end in itertools.pairwise(inputs["cu_seq_lens_q"].tolist())]
    return [(b, 0, length) for b, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist())]


class RowNoise:
    def __init__(self, embedding: torch.nn.Module, alpha: float, seed: int) -> None:
        self._alpha, self._seed = alpha, seed
        self._places: Sequence[Place] | None = None
        self._keys: list[tuple[int, int]] = []
        embedding.register_forward_hook(self._add_noise)

    @contextlib.contextmanager
    def on(self, places: Sequence[Place], step: int, rows: list[int]) -> Iterator[None]:
        """Noise for the forwards inside: row `rows[b]` of step `step` always gets the same, at `places[b]`."""
        self._places = places
        self._keys = [row_key(self._seed, step, row) for row in rows]
        try:
            yield
        finally:
            self._places = None

    def _add_noise(self, module: torch.nn.Module, inputs: Any, output_BLD: torch.Tensor) -> torch.Tensor:
        if self._places is None:
            return output_BLD
        return output_BLD + noise_for(output_BLD, self._places, self._keys, self._alpha)


def row_key(seed: int, step: int, row: int) -> tuple[int, int]:
    """Two 32-bit words of a row's own: with one alone, two of a step's hundred thousands of tokens would share numbers by chance."""
    digest = hashlib.sha256(f"{seed}/{step}/{row}".encode()).digest()
    return int.from_bytes(digest[:4], signed=True), int.from_bytes(digest[4:8], signed=True)


def noise_for(output_BLD: torch.Tensor, places: Sequence[Place], keys: Sequence[tuple[int, int]], alpha: float) -> torch.Tensor:
    """The noise of a micro-batch's embeddings, in their shape and type; 0 where no sequence lies."""
    device, features = output_BLD.device, output_BLD.shape[-1]
    row_T, position_T = _owners(places, output_BLD.shape[:2])
    scales = [alpha / math.sqrt((end - begin) * features) if end > begin else 0.0 for _, begin, end in places]
    keys_R2 = torch.tensor([*keys, (0, 0)], dtype=torch.int32, device=device)
    scale_R = torch.tensor([*scales, 0.0], dtype=torch.float32, device=device)  # the last is nobody's
    row_T, position_T = row_T.to(device), position_T.to(device)
    first_T, second_T = keys_R2[row_T].unbind(1)
    first_T, second_T = hashed(position_T, first_T, second_T), hashed(position_T, second_T, first_T)
    feature_D = torch.arange(features, dtype=torch.int32, device=device)
    noise_TD = torch.empty(len(row_T), features, dtype=output_BLD.dtype, device=device)
    tokens = max(1, AT_ONCE // features)
    parts = (each.split(tokens) for each in (noise_TD, first_T[:, None], second_T[:, None], scale_R[row_T][:, None]))
    for part_TD, first_T1, second_T1, scale_T1 in zip(*parts, strict=True):
        part_TD.copy_(as_uniform(hashed(feature_D, first_T1, second_T1)).mul_(scale_T1))
    return noise_TD.view_as(output_BLD)


def _owners(places: Sequence[Place], shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each token: its place in the list, or one beyond where it is a pad; and its position in its sequence."""
    row_BL, position_BL = torch.full(shape, len(places)), torch.zeros(shape, dtype=torch.int32)
    for row, (b, begin, end) in enumerate(places):
        row_BL[b, begin:end] = row
        position_BL[b, begin:end] = torch.arange(end - begin, dtype=torch.int32)
    return row_BL.flatten(), position_BL.flatten()


def hashed(counter: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """32 well-mixed bits of a counter under a key of two words, all int32.

    The rounds of triple32 (github.com/skeeto/hash-prospector). The first word comes in before them, the second after the first product:
    later, its upper bits would not reach half of the result. Integers alone, whose sums and products wrap round: every device gives the
    same bits.
    """
    bits = counter + first
    scratch = torch.empty_like(bits)
    _fold(bits, 17, scratch)
    bits.mul_(_signed(0xED5AD4BB))
    bits.add_(second)
    _fold(bits, 11, scratch)
    bits.mul_(_signed(0xAC4C1B51))
    _fold(bits, 15, scratch)
    bits.mul_(_signed(0x31848BAB))
    return _fold(bits, 14, scratch)


def as_uniform(bits: torch.Tensor) -> torch.Tensor:
    """float32 in [-1, 1), from the upper 24 bits, which it holds without rounding."""
    return bits.bitwise_right_shift_(8).to(torch.float32).mul_(2.0**-23)


def _fold(bits: torch.Tensor, shift: int, scratch: torch.Tensor) -> torch.Tensor:
    """bits ^= bits >> shift, without the copies of the sign that int32's shift brings in."""
    torch.bitwise_right_shift(bits, shift, out=scratch)
    return bits.bitwise_xor_(scratch.bitwise_and_((1 << (32 - shift)) - 1))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
