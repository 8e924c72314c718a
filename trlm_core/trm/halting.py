"""The carry: what each batch slot hands from one supervision step to the next, and when its example is done.

Every decision is a row's own: no mean over the batch, so that a row's result does not depend on its neighbours.
"""
# ruff: noqa: N815 - tensor names carry their shape

from dataclasses import dataclass

import torch
from torch import Tensor

from trlm_core.trm.config import RecursionConfig
from trlm_core.trm.recursion import RecursiveReasoningBase


@dataclass(frozen=True)
class Carry:
    """y and z without a graph, and where the slot's example stands."""

    y_BLD: Tensor
    z_BLD: Tensor
    steps_B: Tensor  # supervision steps that the example has had
    fewest_steps_B: Tensor  # before so many it does not halt
    done_B: Tensor  # its slot wants another example

    def to(self, device: torch.device) -> "Carry":
        return Carry(**{name: each.to(device) for name, each in vars(self).items()})


def first_carry(core: RecursiveReasoningBase, x_BLD: Tensor) -> Carry:
    """Every slot wants an example: `reset` follows."""
    y_BLD, z_BLD = core.init_state(x_BLD)
    zeros_B = torch.zeros(len(x_BLD), dtype=torch.long, device=x_BLD.device)
    return Carry(y_BLD, z_BLD, zeros_B, zeros_B, torch.ones_like(zeros_B, dtype=torch.bool))


def reset(core: RecursiveReasoningBase, carry: Carry, generator: torch.Generator) -> Carry:
    """Slots that are done start anew; the others go on as they were."""
    y_BLD, z_BLD = core.init_state(carry.y_BLD)
    done_B, done_B11 = carry.done_B, carry.done_B[:, None, None]
    fewest_steps_B = draw_fewest_steps(core.config, len(done_B), generator).to(done_B.device)
    return Carry(
        y_BLD=torch.where(done_B11, y_BLD, carry.y_BLD),
        z_BLD=torch.where(done_B11, z_BLD, carry.z_BLD),
        steps_B=torch.where(done_B, 0, carry.steps_B),
        fewest_steps_B=torch.where(done_B, fewest_steps_B, carry.fewest_steps_B),
        done_B=torch.zeros_like(done_B),
    )


def draw_fewest_steps(config: RecursionConfig, batch: int, generator: torch.Generator) -> Tensor:
    """1, or with the exploration's probability a random number from 2 to N: late steps get trained though the head would stop early."""
    explores_B = torch.rand(batch, generator=generator) < config.halt_exploration_prob
    drawn_B = torch.randint(2, max(2, config.n_supervision_steps) + 1, (batch,), generator=generator)
    return torch.where(explores_B, drawn_B, 1)


def advance(config: RecursionConfig, carry: Carry, y_BLD: Tensor, z_BLD: Tensor, q_B: Tensor) -> Carry:
    """The carry after a supervision step whose loss has been taken."""
    steps_B = carry.steps_B + 1
    halts_B = (q_B.detach() > 0) & (steps_B >= carry.fewest_steps_B)
    done_B = halts_B | (steps_B >= config.n_supervision_steps)
    return Carry(y_BLD.detach(), z_BLD.detach(), steps_B, carry.fewest_steps_B, done_B)
