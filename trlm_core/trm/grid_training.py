"""Training a TRM on grids: each supervision step is one loss, one backward, one optimizer step.

A slot whose example is done gets another example while its neighbours go on: a batch's rows are at different steps.
B batch, L cells, D width, V tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trlm_core.trm.ema import WeightAverage
from trlm_core.trm.grid_trm import GridTRM
from trlm_core.trm.halting import Carry, advance, first_carry, reset
from trlm_core.trm.sudoku import Puzzles

HALTING_WEIGHT = 0.5  # arXiv 2510.04871
BETAS = (0.9, 0.95)


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


class GridTrainer:
    """Holds what goes from one supervision step to the next: weights, their average, optimizer, and each slot's example and carry."""

    def __init__(self, model: GridTRM, puzzles: Puzzles, recipe: GridRecipe) -> None:
        self.model, self.recipe, self.steps_done = model, recipe, 0
        self.average = WeightAverage(model, recipe.ema_decay)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=BETAS, weight_decay=recipe.weight_decay)
        self._puzzles = puzzles
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self.rows_B = torch.zeros(recipe.batch, dtype=torch.long)
        self.carry: Carry = first_carry(model.core, model.embed(puzzles.given_NL[self.rows_B]).detach())

    def train(self) -> GridTRM:
        """The averaged model after the recipe's steps."""
        while self.steps_done < self.recipe.optimizer_steps:
            self.step()
        return self.average.averaged(self.model)

    def step(self) -> float:
        """One supervision step of every slot; its loss."""
        self._refill()
        given_BL, solved_BL = self._puzzles.given_NL[self.rows_B], self._puzzles.solved_NL[self.rows_B]
        y_BLD, z_BLD, q_B = self.model.core.step(self.model.embed(given_BL), self.carry.y_BLD, self.carry.z_BLD)
        loss = grid_loss(self.model.logits(y_BLD), q_B, solved_BL)
        self._update(loss)
        self.carry = advance(self.model.core.config, self.carry, y_BLD, z_BLD, q_B)
        return loss.item()

    def _refill(self) -> None:
        drawn_B = torch.randint(len(self._puzzles), self.rows_B.shape, generator=self._generator)
        self.rows_B = torch.where(self.carry.done_B, drawn_B, self.rows_B)
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
