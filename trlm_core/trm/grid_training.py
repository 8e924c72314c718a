"""Training a TRM on grids: each supervision step is one loss, one backward, one optimizer step.

A slot whose example is done gets another example while its neighbours go on: a batch's rows are at different steps.
B batch, L cells, D width, V tokens.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trlm_core.trm.ema import WeightAverage
from trlm_core.trm.grid_trm import GridTRM
from trlm_core.trm.halting import Carry, advance, first_carry, reset
from trlm_core.trm.puzzles import Puzzles, Variation, as_they_are, where

HALTING_WEIGHT = 0.5  # arXiv 2510.04871
BETAS = (0.9, 0.95)
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class GridRecipe:
    optimizer_steps: int
    batch: int
    learning_rate: float
    final_rate_share: float  # of the learning rate, at the last step; linear from the warm-up's end
    warmup_steps: int
    weight_decay: float
    max_gradient_norm: float
    ema_decay: float
    seed: int
    precision: Literal["float32", "bf16_mixed"]


class GridTrainer:
    """Holds what goes from one supervision step to the next: weights, their average, optimizer, and each slot's example and carry.

    It trains on the device that the model is on. `vary` gives an example another guise whenever a slot takes it.
    """

    def __init__(self, model: GridTRM, puzzles: Puzzles, recipe: GridRecipe, vary: Variation = as_they_are) -> None:
        self.model, self.recipe, self.steps_done = model, recipe, 0
        self.average = WeightAverage(model, recipe.ema_decay)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=BETAS, weight_decay=recipe.weight_decay)
        self._puzzles, self._vary = puzzles.to(model.device), vary
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self.rows_B = torch.zeros(recipe.batch, dtype=torch.long, device=model.device)
        self.examples = self._puzzles.pick(self.rows_B)
        self.carry: Carry = first_carry(model.core, model.embed(self.examples.given_NL).detach())

    def train(self) -> GridTRM:
        """The averaged model after the recipe's steps."""
        while self.steps_done < self.recipe.optimizer_steps:
            self.step()
        return self.average.averaged(self.model)

    def step(self) -> float:
        """One supervision step of every slot; its loss."""
        self._refill()
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16_mixed"):
            x_BLD = self.model.embed(self.examples.given_NL)
            y_BLD, z_BLD, q_B = self.model.core.step(x_BLD, self.carry.y_BLD, self.carry.z_BLD)
            logits_BLV = self.model.logits(y_BLD)
        loss = grid_loss(logits_BLV, q_B, self.examples.solved_NL)
        self._update(loss)
        self.carry = advance(self.model.core.config, self.carry, y_BLD, z_BLD, q_B)
        return loss.item()

    def state(self) -> dict[str, Any]:
        """All that a training which was cut off needs to go on to the same bits; a copy, which later steps do not change."""
        state = {
            "steps_done": self.steps_done,
            "model": self.model.state_dict(),
            "average": self.average.weights,
            "optimizer": self.optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "rows": self.rows_B,
            "examples": vars(self.examples),
            "carry": vars(self.carry),
        }
        return deepcopy(state)

    def restore(self, state: dict[str, Any]) -> None:
        state = deepcopy(state)  # an optimizer takes the tensors that it is given
        self.steps_done = state["steps_done"]
        self.model.load_state_dict(state["model"])
        self.average.weights = {name: each.to(self.model.device) for name, each in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"].cpu())
        self.rows_B = state["rows"].to(self.model.device)
        self.examples = Puzzles(**state["examples"]).to(self.model.device)
        self.carry = Carry(**state["carry"]).to(self.model.device)

    def _refill(self) -> None:
        drawn_B = torch.randint(len(self._puzzles), self.rows_B.shape, generator=self._generator).to(self.model.device)
        guise = torch.Generator().manual_seed((self.recipe.seed * 1_000_003 + self.steps_done) % LARGEST_SEED)
        drawn = self._vary(self._puzzles.pick(drawn_B), guise)
        self.rows_B = torch.where(self.carry.done_B, drawn_B, self.rows_B)
        self.examples = where(self.carry.done_B, drawn, self.examples)
        self.carry = reset(self.model.core, self.carry, self._generator)

    def _update(self, loss: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.recipe, self.steps_done)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_gradient_norm)
        self.optimizer.step()
        self.average.update(self.model)
        self.steps_done += 1


def grid_loss(logits_BLV: Tensor, q_B: Tensor, solved_BL: Tensor) -> Tensor:
    """Cross-entropy of the cells, and of the halting head's guess whether all of a row's cells are right."""
    is_right_B = (logits_BLV.argmax(dim=-1) == solved_BL).all(dim=-1)
    cells = functional.cross_entropy(logits_BLV.flatten(0, 1), solved_BL.flatten())
    return cells + HALTING_WEIGHT * functional.binary_cross_entropy_with_logits(q_B, is_right_B.float())


def rate_at(recipe: GridRecipe, step: int) -> float:
    """Linear warm-up, then linear to the final share at the last step."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    gone = (step - recipe.warmup_steps) / max(1, recipe.optimizer_steps - 1 - recipe.warmup_steps)
    return recipe.learning_rate * (1 - gone * (1 - recipe.final_rate_share))
