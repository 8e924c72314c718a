"""Everything of a latent-thought model but the language model: what is trained, averaged and saved.

B batch, M latents, d the TRM's width, D the language model's.
"""

import torch
from torch import Tensor, nn

from trlm_core.trm.blocks import rms
from trlm_core.trm.compressor import LatentExpander
from trlm_core.trm.config import HiddenStateConfig
from trlm_core.trm.hidden_state_trm import HiddenStateTRM


class ThoughtProjector(nn.Module):
    """u = rms(W latents) * g: latents as embeddings that a language model can read.

    g starts as the root mean square of its embedding table: hidden states are up to 50 times as large as embeddings.
    """

    def __init__(self, width: int, hidden_size: int, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, hidden_size)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, latents_BMd: Tensor) -> Tensor:
        return rms(self.linear(latents_BMd.to(self.linear.weight.dtype))) * self.scale


class Thinker(nn.Module):
    """A TRM on hidden states, the way back from latents to hidden states, and the way into the language model's input."""

    def __init__(self, config: HiddenStateConfig, embedding_scale: float) -> None:
        super().__init__()
        self.trm = HiddenStateTRM(config)
        self.expander = LatentExpander(config)
        self.projector = ThoughtProjector(config.recursion.width, config.hidden_size, embedding_scale)

    def embed(self, latents_BMd: Tensor) -> Tensor:
        """[B, M, d] as the compressor gives them -> [B, M, D]."""
        return self.projector(latents_BMd)

    def embed_thought(self, v_BMd: Tensor) -> Tensor:
        """[B, M, d] as the TRM gives them, standardised -> [B, M, D]."""
        return self.projector(self.trm.norm.unstandardise_post(v_BMd))
