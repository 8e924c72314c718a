"""Phase 2: the recursion learns to get from the latents of a prompt to those of the thought about it, better with every supervision step.

A step is one supervision step of every slot: one loss, one backward, one optimizer step. A slot whose example is done takes another at once
(halting.py), so that every step is a full batch and its slots are at different steps of their examples.
Trained: recursion, slots, head, halting head. Compressor, expander, projector and statistics are phase 1's, and frozen.
N rows, B slots, M latents, d the TRM's width, C positions of a thought, A of an answer, V the vocabulary.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trlm_core.recipes.trm_schema import Phase2
from trlm_core.trm.config import RecursionConfig
from trlm_core.trm.halting import Carry, advance, first_carry, reset
from trlm_core.trm.latent_norm import centred_r2
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.phase_module import PhaseModule, StepLoss, Training, named
from trlm_core.trm.phase_rows import Latents, RowTable
from trlm_core.trm.thought_data import BatchOrder, ThoughtBatch
from trlm_core.trm.thought_losses import ReadThought, answer_is_right, answer_loss

TRAINED = ("trm.slots_Md", "trm.core", "trm.head")


class Phase2Module(PhaseModule):
    def __init__(self, model: LatentThoughtModel, table: RowTable, latents: Latents, recipe: Phase2, seed: int) -> None:
        """Raises ValueError for a model whose phase 1 is not over."""
        super().__init__(model, Training(recipe.training, recipe.ema_decay, seed))
        self.recipe, self.table, self.trm, self.full = recipe, table, model.thinker.trm, model.config.states.recursion
        self.order = BatchOrder(len(table), recipe.training.batch, seed)
        self.pre_NMd, self.post_NMd = latents.pre_NMd, latents.post_NMd
        self.rows_B = torch.zeros(recipe.training.batch, dtype=torch.long)
        self.targets()
        self.carry: Carry = first_carry(self.trm.core, self.pre_NMd[self.rows_B].to(self.trm.slots_Md.device))

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return named(self, *(f"model.thinker.{part}" for part in TRAINED))

    def targets(self) -> Tensor:
        """[B, M, d]: of the rows that the slots have now. Raises ValueError where the statistics are not there."""
        norm = self.trm.norm
        return norm.standardise_post(self.post_NMd[self.rows_B].to(self.trm.slots_Md.device))

    def step_loss(self, step: int) -> StepLoss:
        self.trm.core.config = recursion_at(self.recipe, self.full, step)
        self._refill(step)
        batch = self.table.batch(self.rows_B.tolist()).to(self.device)
        x_BMd = self.trm.place(self.pre_NMd[self.rows_B].to(self.device))
        y_BMd, z_BMd, q_B = self.trm.core.step(x_BMd, self.carry.y_BLD, self.carry.z_BLD)
        made = self._losses(step, batch, self.trm.head(y_BMd), q_B)
        self.carry = advance(self.full, self.carry, y_BMd, z_BMd, q_B)
        return replace(made, metrics={**made.metrics, **self._steps()}, state_rms=y_BMd.detach().float().square().mean().sqrt())

    def extra_state(self) -> dict[str, Any]:
        return {"rows_B": self.rows_B, **vars(self.carry)}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.rows_B = state["rows_B"].cpu()
        self.carry = Carry(**{name: state[name] for name in Carry.__dataclass_fields__})

    def finish(self) -> None:
        self.trm.core.config = self.full
        self.adopt_average()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.carry = self.carry.to(self.device)

    def _refill(self, step: int) -> None:
        offered_B = torch.tensor(self.order.rows_at(step))
        self.rows_B = torch.where(self.carry.done_B.cpu(), offered_B, self.rows_B)
        generator = torch.Generator().manual_seed(self.how.seed_at(step))
        carry = reset(self.trm.core, self.carry, generator)
        self.carry = replace(carry, fewest_steps_B=carry.fewest_steps_B.clamp(min=self.recipe.min_steps))

    def _losses(self, step: int, batch: ThoughtBatch, v_BMd: Tensor, q_B: Tensor) -> StepLoss:
        weights, target_BMd, right_B = self.recipe.losses, self.targets(), None
        losses = {"state": functional.mse_loss(v_BMd.float(), target_BMd)}
        if weights.token or not has_answers(self.recipe, step):
            read = ReadThought.of(self.model, self.trm.norm.unstandardise_post(v_BMd), batch)
            losses["token"], right_B = read.loss(), read.is_right()
        if has_answers(self.recipe, step):
            prompt = self.model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
            logits_BAV = self.model.answer_logits(prompt, self.model.thinker.embed_thought(v_BMd), batch.answer_ids_BA)
            losses["answer"], right_B = answer_loss(logits_BAV, batch), answer_is_right(logits_BAV, batch)
        assert right_B is not None
        losses["halt"] = halting_loss(q_B, right_B)
        total = sum(getattr(weights, name) * each for name, each in losses.items())
        assert isinstance(total, Tensor)
        metrics = {f"loss_{name}": each.detach() for name, each in losses.items()}
        metrics |= {"right": right_B.float().mean(), "halt_accuracy": ((q_B > 0) == right_B).float().mean()}
        return StepLoss(total, {**metrics, "r2": centred_r2(v_BMd.detach().float(), target_BMd)})

    def _steps(self) -> dict[str, float]:
        """How many steps the examples took that are done now."""
        taken = self.carry.steps_B[self.carry.done_B]
        return {"mean_steps": taken.float().mean().item()} if len(taken) else {}


def has_answers(recipe: Phase2, step: int) -> bool:
    """Whether a step has the answer's loss too, which goes through the language model: the last ones have."""
    return recipe.losses.answer > 0 and step >= round((1 - recipe.answer_share) * recipe.training.steps)


def recursion_at(recipe: Phase2, full: RecursionConfig, step: int) -> RecursionConfig:
    """The curriculum's depth at a step, never more than the model's own; then the model's own."""
    begins = 0.0
    for depth in recipe.curriculum:
        begins += depth.share
        if step < round(begins * recipe.training.steps):
            n, t = min(full.n_latent_steps, depth.n_latent_steps), min(full.n_deep_recursions, depth.n_deep_recursions)
            return replace(full, n_latent_steps=n, n_deep_recursions=t)
    return full


def halting_loss(q_B: Tensor, right_B: Tensor) -> Tensor:
    """The head guesses whether the step is right."""
    return functional.binary_cross_entropy_with_logits(q_B, right_B.float())
