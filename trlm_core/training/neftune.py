"""NEFTune noise (arXiv 2310.05914): uniform noise of scale alpha / sqrt(length x hidden size) on the embeddings while training.

The row's own length is taken, not the padded one, and every row has its own seed: the noise does not depend on how a step is cut.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from trlm_core.data.split import seed_of

Place = tuple[int, int, int]  # of a sequence in a micro-batch: line, begin, end


def places_of(inputs: Mapping[str, torch.Tensor]) -> list[Place]:
    """Where each sequence lies: a line of its own with pads behind it, or one line for all, end to end (packing.py)."""
    if "cu_seq_lens_q" in inputs:
        return [(0, begin, end) for begin, end in itertools.pairwise(inputs["cu_seq_lens_q"].tolist())]
    return [(b, 0, length) for b, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist())]


class RowNoise:
    def __init__(self, embedding: torch.nn.Module, alpha: float, seed: int) -> None:
        self._alpha, self._seed = alpha, seed
        self._places: Sequence[Place] | None = None
        self._keys: list[int] = []
        embedding.register_forward_hook(self._add_noise)

    @contextlib.contextmanager
    def on(self, places: Sequence[Place], step: int, rows: list[int]) -> Iterator[None]:
        """Noise for the forwards inside: row `rows[b]` of step `step` always gets the same, at `places[b]`."""
        self._places = places
        self._keys = [seed_of(self._seed, f"{step}/{row}") for row in rows]
        try:
            yield
        finally:
            self._places = None

    def _add_noise(self, module: torch.nn.Module, inputs: Any, output_BLD: torch.Tensor) -> torch.Tensor:
        if self._places is None:
            return output_BLD
        noise_BLD = torch.zeros_like(output_BLD)
        for (b, begin, end), key in zip(self._places, self._keys, strict=True):
            length = end - begin
            generator = torch.Generator().manual_seed(key)
            uniform_LD = torch.rand(length, output_BLD.shape[-1], generator=generator) * 2 - 1
            noise_BLD[b, begin:end] = (uniform_LD * (self._alpha / math.sqrt(length * output_BLD.shape[-1]))).to(output_BLD)
        return output_BLD + noise_BLD
