"""The plain TRM of the paper on grids of tokens: tokens in, a token for every cell out, better with every supervision step.

B batch, L cells, D width, V tokens, S supervision steps.
"""
# ruff: noqa: N815 - tensor names carry their shape

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trlm_core.trm.blocks import lecun
from trlm_core.trm.config import RecursionConfig
from trlm_core.trm.recursion import RecursiveReasoningBase


class GridTRM(nn.Module):
    def __init__(self, config: RecursionConfig, n_tokens: int, n_cells: int) -> None:
        super().__init__()
        std = config.width**-0.5
        self.tokens_VD = nn.Parameter(torch.randn(n_tokens, config.width) * std)
        self.positions_LD = nn.Parameter(torch.randn(n_cells, config.width) * std)
        self.core = RecursiveReasoningBase(config)
        self.out = lecun(config.width, n_tokens)

    @property
    def device(self) -> torch.device:
        return self.tokens_VD.device

    def embed(self, grid_BL: Tensor) -> Tensor:
        """[B, L, D] of about unit variance, the states' own."""
        scale = math.sqrt(self.core.config.width / 2)
        return scale * (self.tokens_VD[grid_BL] + self.positions_LD)

    def logits(self, y_BLD: Tensor) -> Tensor:
        return self.out(y_BLD).float()


@dataclass(frozen=True)
class GridAnswers:
    """What each supervision step answers, and whether its halting head holds that right."""

    tokens_SBL: Tensor
    halts_SB: Tensor


def without_recursion(config: RecursionConfig) -> RecursionConfig:
    """The same parameters, each layer passed twice: z from x once, y from z once, one supervision step."""
    return replace(config, n_latent_steps=1, n_deep_recursions=1, n_supervision_steps=1)


@torch.no_grad()
def answer_grids(model: GridTRM, grid_BL: Tensor, steps: int) -> GridAnswers:
    """A fixed number of supervision steps for every row, as the paper evaluates."""
    x_BLD = model.embed(grid_BL)
    y_BLD, z_BLD = model.core.init_state(x_BLD)
    tokens, halts = [], []
    for _ in range(steps):
        y_BLD, z_BLD, q_B = model.core.step(x_BLD, y_BLD, z_BLD)
        tokens.append(model.logits(y_BLD).argmax(dim=-1))
        halts.append(q_B > 0)
    return GridAnswers(torch.stack(tokens), torch.stack(halts))


def is_solved(answers: GridAnswers, solved_BL: Tensor) -> Tensor:
    """[S, B]: whether a step has every cell right."""
    return (answers.tokens_SBL == solved_BL).all(dim=-1)
