"""The recursion of a TRM: a tiny net improves a thought z, then its answer y, over and over (arXiv 2510.04871, algorithm 3).

B batch, L positions (cells of a grid, or latents of a prompt), D width.
"""
# ruff: noqa: N815 - tensor names carry their shape

import torch
from torch import Tensor, nn

from trlm_core.trm.blocks import PreNormBlock, TransformerBlock
from trlm_core.trm.config import RecursionConfig


class TinyRecursiveNetwork(nn.Module):
    """The net: a few blocks. That x is in its input, or is not, tells it whether z or y is wanted."""

    def __init__(self, config: RecursionConfig) -> None:
        super().__init__()
        block = {"post": TransformerBlock, "pre": PreNormBlock}[config.norm]
        self.blocks = nn.ModuleList(block(config.width, config.n_heads, config.residual_scale) for _ in range(config.n_layers))

    def forward(self, x_BLD: Tensor) -> Tensor:
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return x_BLD


class RecursiveReasoningBase(nn.Module):
    """The net, where y and z start, and the head that says when an answer is good enough."""

    y_init_D: Tensor
    z_init_D: Tensor

    def __init__(self, config: RecursionConfig) -> None:
        super().__init__()
        self.config = config
        self.net = TinyRecursiveNetwork(config)
        for name in ("y_init_D", "z_init_D"):  # never trained, but part of what was learned with them: saved
            self.register_buffer(name, nn.init.trunc_normal_(torch.empty(config.width), std=1.0))
        self.halt_head = nn.Linear(config.width, 1)
        nn.init.zeros_(self.halt_head.weight)
        nn.init.constant_(self.halt_head.bias, -5.0)  # nothing halts before it has been learned

    def init_state(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        return self.y_init_D.to(x_BLD.dtype).expand_as(x_BLD), self.z_init_D.to(x_BLD.dtype).expand_as(x_BLD)

    def latent_recursion(self, x_BLD: Tensor, y_BLD: Tensor, z_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """n times z from x, y and z; then y from y and z. Where n is 0 it is the net alone: y from x."""
        if self.config.n_latent_steps == 0:
            return self.net(x_BLD), z_BLD
        for _ in range(self.config.n_latent_steps):
            z_BLD = self.net(x_BLD + y_BLD + z_BLD)
        return self.net(y_BLD + z_BLD), z_BLD

    def run_deep_recursion(self, x_BLD: Tensor, y_BLD: Tensor, z_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """T latent recursions, the last of them with a gradient through all its n + 1 calls.

        What comes back carries that gradient: detach it after the loss has used it, never before.
        """
        with torch.no_grad():
            for _ in range(self.config.n_deep_recursions - 1):
                y_BLD, z_BLD = self.latent_recursion(x_BLD, y_BLD, z_BLD)
        return self.latent_recursion(x_BLD, y_BLD, z_BLD)

    def halt_logits(self, y_BLD: Tensor) -> Tensor:
        """[B], above 0 where the answer is held to be right."""
        return self.halt_head(y_BLD.mean(dim=1)).squeeze(-1).float()

    def step(self, x_BLD: Tensor, y_BLD: Tensor, z_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One supervision step: y, z and the halting logits [B]."""
        y_BLD, z_BLD = self.run_deep_recursion(x_BLD, y_BLD, z_BLD)
        return y_BLD, z_BLD, self.halt_logits(y_BLD)
