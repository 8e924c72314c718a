"""What an answer costs in floating-point operations, and how many generated tokens of the language model that is.

A position costs 2 for each weight of the matrices that it goes through; attention's own products, norms and embeddings count nothing.
So counted, a thought of the paper's depth, in 64 latents of width 576, costs 342 GFLOP: about 1,270 tokens of SmolLM2-135M.
"""

from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from trlm_core.trm.config import depth_of_a_step
from trlm_core.trm.hidden_states import backbone, embedding_table
from trlm_core.trm.latent_thought_model import LatentThoughtModel


@dataclass(frozen=True)
class Work:
    """Positions of one answer, or their mean over answers."""

    read: float  # by the language model, of the prompt and of a thought that is given; twice what it has to read twice
    written: float = 0.0  # tokens that the language model writes: a thought of its own and the answer
    latents: float = 0.0  # read by the language model in place of a thought
    compressed: float = 0.0  # states that the compressor reads
    steps: float = 0.0  # supervision steps of the TRM
    projected: float = 0.0  # latents that become embeddings: none of those that are constants


@dataclass(frozen=True)
class Weights:
    """Of the matrices that a position goes through."""

    body: int  # of the language model without its head
    head: int
    compressor_reads: int  # for each state
    compressor_writes: int  # for each latent
    block: int  # a layer of the recursion
    layers_of_a_step: int
    trm_head: int  # for each latent that the recursion ends with
    projector: int  # for each latent that becomes an embedding
    num_latents: int

    @classmethod
    def of(cls, model: LatentThoughtModel) -> "Weights":
        attention, recursion = model.thinker.trm.compressor.attention, model.config.states.recursion
        reads = attention.key_value.weight.numel()
        return cls(
            body=matrix_weights(backbone(model.base)),
            head=embedding_table(model.base).numel(),  # as large as the embeddings, tied to them or not
            compressor_reads=reads,
            compressor_writes=matrix_weights(attention) - reads,
            block=matrix_weights(model.thinker.trm.core.net.blocks[0]),
            layers_of_a_step=depth_of_a_step(recursion),
            trm_head=matrix_weights(model.thinker.trm.head),
            projector=matrix_weights(model.thinker.projector),
            num_latents=model.config.states.num_latents,
        )


def matrix_weights(module: nn.Module) -> int:
    return sum(each.weight.numel() for each in module.modules() if isinstance(each, nn.Linear | Conv1D))


def flops(weights: Weights, work: Work) -> float:
    """A token that is written goes through the head; so does none that is only read. The last one is not read any more."""
    positions = work.read + work.latents + work.written
    language_model = positions * weights.body + work.written * weights.head
    compressor = work.compressed * weights.compressor_reads + (weights.num_latents * weights.compressor_writes if work.compressed else 0)
    recursion = work.steps * thought_flops(weights, 1) / 2
    head = weights.num_latents * weights.trm_head if work.steps else 0
    return 2 * (language_model + compressor + recursion + head + work.projected * weights.projector)


def thought_flops(weights: Weights, steps: float) -> float:
    """Of the recursion alone."""
    return 2 * steps * weights.layers_of_a_step * weights.block * weights.num_latents


def as_tokens(weights: Weights, operations: float) -> float:
    """How many tokens the language model would write for them."""
    return operations / (2 * (weights.body + weights.head))
