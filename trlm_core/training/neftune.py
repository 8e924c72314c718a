"""NEFTune noise (arXiv 2310.05914): uniform noise of scale alpha / sqrt(length x hidden size) on the embeddings while training.

The row's own length is taken, not the padded one, and every row has its own seed: the noise does not depend on how a step is cut.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch

from trlm_core.data.split import seed_of


class RowNoise:
    def __init__(self, embedding: torch.nn.Module, alpha: float, seed: int) -> None:
        self._alpha, self._seed = alpha, seed
        self._lengths: torch.Tensor | None = None
        self._keys: list[int] = []
        embedding.register_forward_hook(self._add_noise)

    @contextlib.contextmanager
    def on(self, attention_mask_BL: torch.Tensor, step: int, rows: list[int]) -> Iterator[None]:
        """Noise for the forwards inside: row `rows[b]` of step `step` always gets the same."""
        self._lengths = attention_mask_BL.sum(dim=1)
        self._keys = [seed_of(self._seed, f"{step}/{row}") for row in rows]
        try:
            yield
        finally:
            self._lengths = None

    def _add_noise(self, module: torch.nn.Module, inputs: Any, output_BLD: torch.Tensor) -> torch.Tensor:
        if self._lengths is None:
            return output_BLD
        noise_BLD = torch.zeros_like(output_BLD)
        for b, (length, key) in enumerate(zip(self._lengths.tolist(), self._keys, strict=True)):
            generator = torch.Generator().manual_seed(key)
            uniform_LD = torch.rand(length, output_BLD.shape[-1], generator=generator) * 2 - 1
            noise_BLD[b, :length] = (uniform_LD * (self._alpha / math.sqrt(length * output_BLD.shape[-1]))).to(output_BLD)
        return output_BLD + noise_BLD
