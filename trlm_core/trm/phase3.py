"""Phase 3: thoughts are trained by what the answers after them are worth (GRPO); the language model is frozen and its bytes are checked.

The policy is answer | prompt, u(prompt): no chance is in u, so that a group's answers share it and differ by their tokens alone.
The gradient goes from an answer's log-probability through the embeddings of the thought into its last step, and to the compressor.
Trained: compressor, recursion, slots, head, projector; the halting head by its own loss, which moves nothing else.
P prompts, G answers each, B of them in a loss, A tokens, M latents, V the vocabulary.
"""
# ruff: noqa: N815 - tensor names carry their shape

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trlm_core.recipes.trm_schema import Phase3
from trlm_core.trm.answers import Ids, Writing, chosen, exact, write_answers
from trlm_core.trm.grpo import PolicyRecipe, Rollout, advantages, policy_loss, tells_apart
from trlm_core.trm.hidden_state_trm import ThoughtOutput
from trlm_core.trm.hidden_states import LanguageModel
from trlm_core.trm.latent_thought_model import EncodedPrompt, LatentThoughtModel
from trlm_core.trm.phase2 import halting_loss
from trlm_core.trm.phase_module import PhaseModule, StepLoss, Training, named
from trlm_core.trm.phase_rows import RowTable
from trlm_core.trm.rewards import IsWellFormed, group_rewards
from trlm_core.trm.thinker import Thinker
from trlm_core.trm.thought_data import BatchOrder, padded

TRAINED = ("trm.compressor", "trm.slots_Md", "trm.core", "trm.head", "projector")


@dataclass(frozen=True)
class _Telling:
    """Answers of the groups that tell something, and their advantages."""

    prompt: EncodedPrompt
    numbers_B: Tensor  # of their prompts in the batch
    ids_BA: Tensor
    mask_BA: Tensor
    advantages_B: Tensor
    whole: Rollout  # of all groups


class Phase3Module(PhaseModule):
    """A thought takes the model's `eval_steps`."""

    def __init__(
        self, model: LatentThoughtModel, table: RowTable, is_well_formed: IsWellFormed, recipe: Phase3, max_new_tokens: int, seed: int
    ) -> None:
        super().__init__(model, Training(recipe.training, recipe.ema_decay, seed))
        self.recipe, self.table, self.is_well_formed = recipe, table, is_well_formed
        self.policy = PolicyRecipe(recipe.loss_type, recipe.epsilon, recipe.beta, max_new_tokens)
        self.reference: Thinker = copy.deepcopy(model.thinker).requires_grad_(False)
        self.order = BatchOrder(len(table), recipe.training.batch, seed)
        self.language_model_sha256 = language_model_sha256(model.base)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return named(self, *(f"model.thinker.{part}" for part in TRAINED))

    def step_loss(self, step: int) -> StepLoss:
        numbers = self.order.rows_at(step)
        batch, rows = self.table.batch(numbers).to(self.device), [self.table.rows[number] for number in numbers]
        prompt = self.model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
        thought = self._think(self.model.thinker, prompt)
        u_PMD = self.model.thinker.embed_thought(thought.v_BMd)
        answers = self._group_answers(prompt, u_PMD.detach())
        rewards_PG = group_rewards(self.recipe.rewards, answers, rows, self.is_well_formed)
        right_PG = torch.tensor(exact(answers, [row for row in rows for _ in range(self.recipe.group_size)])).view_as(rewards_PG)
        halt = self._halting_loss(thought, right_PG)
        metrics = {
            "reward_mean": rewards_PG.mean(),
            "exact": right_PG.float().mean(),
            "zero_variance_share": (~tells_apart(rewards_PG)).float().mean(),
            "loss_halt": halt.detach(),
        }
        told = self._telling(prompt, answers, rewards_PG)
        if told is None:  # every group was of one mind: only the halting head learns
            return StepLoss(self.recipe.halt_loss * halt, metrics)
        made = self._policy_loss(told, prompt, u_PMD)
        return StepLoss(made.loss + self.recipe.halt_loss * halt, {**metrics, **made.metrics})

    def finish(self) -> None:
        """Raises RuntimeError where the language model is not what it was."""
        self.check_language_model()
        self.adopt_average()

    def on_fit_end(self) -> None:
        self.check_language_model()

    def check_language_model(self) -> None:
        now = language_model_sha256(self.model.base)
        if now != self.language_model_sha256:
            raise RuntimeError(f"language model: wanted the bytes {self.language_model_sha256[:12]} as before phase 3, got {now[:12]}")

    def _halting_loss(self, thought: ThoughtOutput, right_PG: Tensor) -> Tensor:
        """Of the head alone: what a thought is, rewards decide."""
        q_P = self.model.thinker.trm.core.halt_logits(thought.y_BMd.detach())
        return halting_loss(q_P, (right_PG.float().mean(dim=1) > 0.5).to(self.device))

    def _think(self, thinker: Thinker, prompt: EncodedPrompt) -> ThoughtOutput:
        return thinker.trm(prompt.h_BLD, prompt.mask_BL, self.model.config.eval_steps, halting=False)

    def _group_answers(self, prompt: EncodedPrompt, u_PMD: Tensor) -> list[Ids]:
        """One thought serves its group."""
        numbers_B = torch.arange(len(u_PMD), device=self.device).repeat_interleave(self.recipe.group_size)
        writing = Writing(self.policy.max_new_tokens, self.recipe.temperature)
        return write_answers(self.model, chosen(prompt, numbers_B), u_PMD[numbers_B], writing)

    def _telling(self, prompt: EncodedPrompt, answers: Sequence[Ids], rewards_PG: Tensor) -> _Telling | None:
        kept_P = tells_apart(rewards_PG)
        if not kept_P.any():
            return None
        kept_B = kept_P.repeat_interleave(self.recipe.group_size)
        numbers_B = torch.arange(len(kept_P)).repeat_interleave(self.recipe.group_size)[kept_B].to(self.device)
        ids_BA, mask_BA = padded(
            [answer for answer, kept in zip(answers, kept_B.tolist(), strict=True) if kept], self.model.tokens.pad, "right"
        )
        advantages_B = advantages(rewards_PG, self.policy.loss_type).flatten()[kept_B]
        ids_BA, mask_BA, advantages_B = (each.to(self.device) for each in (ids_BA, mask_BA, advantages_B))
        whole = Rollout(len(answers), sum(len(answer) for answer in answers))
        return _Telling(chosen(prompt, numbers_B), numbers_B, ids_BA, mask_BA, advantages_B, whole)

    def _policy_loss(self, told: _Telling, prompt: EncodedPrompt, u_PMD: Tensor) -> StepLoss:
        logp_BA, entropy = self._log_probabilities(told, u_PMD)
        with torch.no_grad():
            reference_u_PMD = self.reference.embed_thought(self._think(self.reference, prompt).v_BMd)
            reference_logp_BA, _ = self._log_probabilities(told, reference_u_PMD)
        # One optimizer step per rollout: the answers were drawn with these very weights.
        made = policy_loss(logp_BA, logp_BA.detach(), reference_logp_BA, told.advantages_B, told.mask_BA, self.policy, told.whole)
        metrics = {"loss_policy": made.loss.detach(), "kl": made.kl, "clip_share": made.clip_share, "entropy": entropy}
        return StepLoss(made.loss, metrics)

    def _log_probabilities(self, told: _Telling, u_PMD: Tensor) -> tuple[Tensor, Tensor]:
        """[B, A] of the answers' tokens as they are drawn, and the mean entropy of a token."""
        logits_BAV = self.model.answer_logits(told.prompt, u_PMD[told.numbers_B], told.ids_BA)
        logp_BAV = (logits_BAV.float() / self.recipe.temperature).log_softmax(dim=-1)
        entropy_BA = -(logp_BAV.detach().exp() * logp_BAV.detach()).sum(dim=-1)
        return logp_BAV.gather(2, told.ids_BA.unsqueeze(2)).squeeze(2), entropy_BA[told.mask_BA].mean()


def language_model_sha256(base: LanguageModel) -> str:
    """Of every byte of its weights."""
    digest = hashlib.sha256()
    for name, each in sorted(base.state_dict().items()):
        digest.update(name.encode())
        digest.update(each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
