"""A TRM on a language model's hidden states: from the states of a prompt to the latents of a thought about it.

B batch, L positions of the prompt, D the language model's width, M latents, d the TRM's width, S supervision steps.
"""
# ruff: noqa: N815 - tensor names carry their shape

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trlm_core.training.errors import BadStepError
from trlm_core.trm.compressor import LatentAttentionCompressor
from trlm_core.trm.config import HiddenStateConfig
from trlm_core.trm.latent_norm import LatentNorm, RawLatents
from trlm_core.trm.recursion import RecursiveReasoningBase


@dataclass(frozen=True)
class ThoughtOutput:
    v_BMd: Tensor  # standardised latents of the thought
    y_BMd: Tensor  # what head and halting head read them and the logits from
    steps_B: Tensor  # that the row used
    q_logits_BS: Tensor  # after each step until the last row halted; of a row that has halted before, its last


class HiddenStateTRM(nn.Module):
    """Parameters are float32; hidden states come in whatever the language model computes in."""

    def __init__(self, config: HiddenStateConfig) -> None:
        super().__init__()
        width = config.recursion.width
        self.compressor = LatentAttentionCompressor(config)
        self.norm = (LatentNorm if config.latent_norm else RawLatents)(config.num_latents, width)
        # Drawn in either case: with the same seed, the weights that come after are the same with slots and without.
        self.slots_Md, self.has_slots = nn.Parameter(torch.randn(config.num_latents, width)), config.slot_embeddings
        self.core = RecursiveReasoningBase(config.recursion)
        self.head = nn.Linear(width, width)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def read(self, h_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """[B, M, d]: the prompt as the recursion sees it."""
        return self.place(self.compressor(h_BLD, mask_BL))

    def place(self, latents_BMd: Tensor) -> Tensor:
        """A prompt's latents in their slots. Standardising takes away what tells slots apart, so they are added back."""
        standard_BMd = self.norm.standardise_pre(latents_BMd)
        return 2**-0.5 * (standard_BMd + self.slots_Md) if self.has_slots else standard_BMd

    def init_state(self, x_BMd: Tensor) -> tuple[Tensor, Tensor]:
        return self.core.init_state(x_BMd)

    def step(self, x_BMd: Tensor, y_BMd: Tensor, z_BMd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.core.step(x_BMd, y_BMd, z_BMd)

    def thoughts(self, x_BMd: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """y and the halting head's logits after each supervision step, whatever these say. Only the last step has a gradient."""
        y_BMd, z_BMd = self.core.init_state(x_BMd)
        for step in range(steps):
            with torch.set_grad_enabled(torch.is_grad_enabled() and step == steps - 1):
                y_BMd, z_BMd, q_B = self.core.step(x_BMd, y_BMd, z_BMd)
            yield y_BMd, q_B

    def forward(self, h_BLD: Tensor, mask_BL: Tensor, steps: int, halting: bool) -> ThoughtOutput:
        """Thinks for so many steps, or where halting, each row until its own head is content.

        Only step number `steps` has a gradient: a row that halts before it has none.
        Raises BadStepError for a recursion that blows up: what a language model answers after NaN looks like any other answer.
        """
        if steps < 1:
            raise ValueError(f"steps: wanted at least 1, got {steps}")
        x_BMd = self.read(h_BLD, mask_BL)
        y_BMd = torch.zeros_like(x_BMd)
        running_B = torch.ones(len(x_BMd), dtype=torch.bool, device=x_BMd.device)
        steps_B, q_logits = torch.zeros_like(running_B, dtype=torch.long), []
        for new_y_BMd, new_q_B in self.thoughts(x_BMd, steps):
            y_BMd = torch.where(running_B[:, None, None], new_y_BMd, y_BMd)
            q_logits.append(torch.where(running_B, new_q_B, q_logits[-1]) if q_logits else new_q_B)
            steps_B = steps_B + running_B
            if halting:
                running_B = running_B & (q_logits[-1] <= 0)
                if not running_B.any():
                    break
        if not y_BMd.isfinite().all():
            raise BadStepError(f"thought: wanted states that are finite after {len(q_logits)} supervision steps, got some that are not")
        return ThoughtOutput(self.head(y_BMd), y_BMd, steps_B, torch.stack(q_logits, dim=1))
