"""Floating-point operations of training steps, by convention, and what this machine's matrix products reach.

PaLM, appendix B (arXiv 2204.02311): a token costs 6 for each weight that it is multiplied with (2 forward, 4 backward) and 12 x layers x
heads x head size for each key that it attends to. Two departures, both downwards: the causal half of the keys is counted, not all of them,
and the head counts for the positions that are scored. Embeddings, norms, softmax and recomputed activations count nothing.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

SIDE = 2_048  # of the square matrices that the peak is measured with


@dataclass(frozen=True)
class Shape:
    """What of a Llama's config its operations hang on."""

    layers: int
    attention_width: int  # query heads x head size
    body_weights: int  # of the layers' matrices
    head_weights: int  # hidden size x vocabulary, shared with the embeddings or not

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Shape":
        head_size = config.head_dim or config.hidden_size // config.num_attention_heads
        width, shared_width = config.num_attention_heads * head_size, config.num_key_value_heads * head_size
        attention = config.hidden_size * (2 * width + 2 * shared_width)
        return cls(
            layers=config.num_hidden_layers,
            attention_width=width,
            body_weights=config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size),
            head_weights=config.hidden_size * config.vocab_size,
        )


def training_flops(shape: Shape, lengths: Iterable[int], scored: int) -> int:
    """Forward and backward of sequences of these lengths, of which `scored` positions go through the head.

    With the sequences' own lengths: the useful operations; with those that they are padded to: the operations that are done.
    """
    body = sum(6 * shape.body_weights * length + _attention(shape, length) for length in lengths)
    return body + 6 * shape.head_weights * scored


def padded_lengths(lengths: Sequence[int], cuts: Sequence[Sequence[int]]) -> list[int]:
    """The length that each sequence is padded to where these positions make a micro-batch."""
    return [max(lengths[position] for position in cut) for cut in cuts for _ in cut]


def matmul_peak(device: str, dtype: torch.dtype, seconds: float) -> float:
    """Operations a second of the best product of two square matrices within so many seconds, with all the threads that torch has."""
    left, right = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    _product_seconds(left, right)  # whatever is prepared for a shape
    ends = time.perf_counter() + seconds
    best = _product_seconds(left, right)
    while time.perf_counter() < ends:
        best = min(best, _product_seconds(left, right))
    return 2 * SIDE**3 / best


def _attention(shape: Shape, length: int) -> int:
    """Token t of a sequence attends to t keys."""
    return 12 * shape.layers * shape.attention_width * length * (length + 1) // 2


def _product_seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    began = time.perf_counter()
    product = torch.mm(left, right)
    product[0, 0].item()  # waits for a GPU
    return time.perf_counter() - began
