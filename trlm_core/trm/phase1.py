"""Phase 1: the compressor learns what a thought's latents must hold, so that the frozen language model answers after them.

    1a identity    states -> latents -> states, of the prompt and of the thought
    1b thought     and what the latents of the thought in text say, with noise on them: its tokens, and the answer after them
Trained: compressor, expander, projector. The recursion is not touched. B batch, M latents, d the TRM's width, D the language model's.
"""
# ruff: noqa: N815 - tensor names carry their shape

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from trlm_core.recipes.trm_schema import Phase1, Phase1Losses
from trlm_core.trm.answers import Ids, Writing, exact, longest_answer, write_answers
from trlm_core.trm.latent_norm import deviation
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.phase_module import PhaseModule, StepLoss, Training, named
from trlm_core.trm.phase_rows import ReadStates, RowTable, States, latents_of
from trlm_core.trm.thought_data import BatchOrder, ThoughtBatch
from trlm_core.trm.thought_losses import (
    ReadThought,
    answer_loss,
    centred_state_r2,
    kl_to_text,
    read_ids,
    relative_error,
    text_answer_logits,
)

TRAINED = ("trm.compressor", "expander", "projector")


class Phase1Module(PhaseModule):
    def __init__(self, model: LatentThoughtModel, table: RowTable, states: ReadStates, recipe: Phase1, seed: int) -> None:
        super().__init__(model, Training(recipe.training, ema_decay=0.0, seed=seed))
        self.recipe, self.table, self.states = recipe, table, states
        self.order = BatchOrder(len(table), recipe.training.batch, seed)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return named(self, *(f"model.thinker.{part}" for part in TRAINED))

    def step_loss(self, step: int) -> StepLoss:
        numbers = self.order.rows_at(step)
        batch = self.table.batch(numbers).to(self.device)
        read = _Read.of(self.model, batch, self.states(numbers, batch))
        losses = read.identity_losses()
        if step >= self.recipe.identity_steps:
            losses |= read.noisy(self.recipe.latent_noise).thought_losses(self.recipe.losses)
        loss = sum(_weight(self.recipe.losses, name) * each for name, each in losses.items())
        assert isinstance(loss, Tensor)
        return StepLoss(loss, {f"loss_{name}": each.detach() for name, each in losses.items()})

    def finish(self) -> None:
        """Take the statistics of the latents, of rows drawn once.

        Raises ValueError for a table of less rows than the recipe wants for it.
        """
        self.adopt_average()
        wanted = self.recipe.norm_examples
        if len(self.table) < wanted:
            raise ValueError(f"norm_examples: wanted {wanted:,} rows, got {len(self.table):,}; lower it or give more rows")
        numbers = BatchOrder(len(self.table), wanted, self.how.seed).rows_at(0)
        latents = latents_of(self.model, self.table, self.states, numbers)
        self.model.thinker.trm.norm.fit(latents.pre_NMd, latents.post_NMd)


@dataclass(frozen=True)
class _Read:
    """A batch, its states, and their latents."""

    model: LatentThoughtModel
    batch: ThoughtBatch
    states: States
    pre_BMd: Tensor
    post_BMd: Tensor

    @classmethod
    def of(cls, model: LatentThoughtModel, batch: ThoughtBatch, states: States) -> "_Read":
        compressor = model.thinker.trm.compressor
        pre_BMd, post_BMd = compressor(states.pre_BLD, batch.prompt_mask_BL), compressor(states.post_BCD, batch.thought_mask_BC)
        return cls(model, batch, states, pre_BMd, post_BMd)

    def expanded(self) -> tuple[Tensor, Tensor]:
        expander = self.model.thinker.expander
        return expander(self.pre_BMd, self.batch.prompt_mask_BL), expander(self.post_BMd, self.batch.thought_mask_BC)

    def identity_losses(self) -> dict[str, Tensor]:
        pre_BLD, post_BCD = self.expanded()
        return {
            "identity_pre": relative_error(pre_BLD, self.states.pre_BLD, self.batch.prompt_mask_BL),
            "identity_post": relative_error(post_BCD, self.states.post_BCD, self.batch.thought_mask_BC),
        }

    def noisy(self, share: float) -> "_Read":
        """With normal noise of this share of the latents' deviation: what reads them then bears the errors that phase 2 will make."""
        if not share:
            return self
        std_d = deviation(self.post_BMd.detach())
        return replace(self, post_BMd=self.post_BMd + share * std_d * torch.randn_like(self.post_BMd))

    def thought_losses(self, weights: Phase1Losses) -> dict[str, Tensor]:
        losses = {}
        if weights.token:
            losses["token"] = ReadThought.of(self.model, self.post_BMd, self.batch).loss()
        if weights.answer or weights.kl:
            prompt = self.model.encode_prompt(self.batch.prompt_ids_BL, self.batch.prompt_mask_BL)
            logits_BAV = self.model.answer_logits(prompt, self.model.thinker.embed(self.post_BMd), self.batch.answer_ids_BA)
            losses["answer"] = answer_loss(logits_BAV, self.batch)
            if weights.kl:
                losses["kl"] = kl_to_text(logits_BAV, text_answer_logits(self.model, self.batch), self.batch.answer_mask_BA)
        return losses


def _weight(weights: Phase1Losses, loss: str) -> float:
    return getattr(weights, loss.split("_")[0])


@dataclass(frozen=True)
class Phase1Metrics:
    """On held-out rows. rel_mse and r2 of prompt and thought; shares of tokens, of answers."""

    rows: int
    rel_mse_pre: float
    rel_mse_post: float
    r2_pre: float
    r2_post: float
    token_accuracy: float  # of the thought, read out of its latents; means something where these are of states that the head reads
    oracle_accuracy: float  # answers after the latents of the thought in text: what phase 2 can reach at best


@torch.no_grad()
def phase1_metrics(model: LatentThoughtModel, table: RowTable, states: ReadStates) -> Phase1Metrics:
    """Means over batches, by rows."""
    totals: dict[str, float] = {}
    answers: list[Ids] = []
    for numbers, batch in table.batches():
        batch = batch.to(model.thinker.trm.slots_Md.device)
        read = _Read.of(model, batch, states(numbers, batch))
        for name, value in _measured(read).items():
            totals[name] = totals.get(name, 0.0) + value * len(batch) / len(table)
        answers += oracle_answers(model, batch, read.post_BMd, longest_answer(table.rows))
    return Phase1Metrics(rows=len(table), **totals, oracle_accuracy=sum(exact(answers, table.rows)) / len(table))


def oracle_answers(model: LatentThoughtModel, batch: ThoughtBatch, post_BMd: Tensor, max_new_tokens: int) -> Sequence[Ids]:
    """After the latents of the thought in text, as the compressor gives them."""
    prompt = model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
    return write_answers(model, prompt, model.thinker.embed(post_BMd), Writing(max_new_tokens, temperature=None))


def _measured(read: _Read) -> dict[str, float]:
    pre_BLD, post_BCD = read.expanded()
    mask_BL, mask_BC, batch = read.batch.prompt_mask_BL, read.batch.thought_mask_BC, read.batch
    ids_BC, predicted_BC = batch.thought_ids_BC[:, 1:], mask_BC[:, 1:]
    right_BC = (read_ids(read.model, read.post_BMd, mask_BC)[:, :-1] == ids_BC) & predicted_BC
    return {
        "rel_mse_pre": relative_error(pre_BLD, read.states.pre_BLD, mask_BL).item(),
        "rel_mse_post": relative_error(post_BCD, read.states.post_BCD, mask_BC).item(),
        "r2_pre": centred_state_r2(pre_BLD, read.states.pre_BLD, mask_BL).item(),
        "r2_post": centred_state_r2(post_BCD, read.states.post_BCD, mask_BC).item(),
        "token_accuracy": (right_BC.sum() / predicted_BC.sum().clamp(min=1)).item(),
    }
