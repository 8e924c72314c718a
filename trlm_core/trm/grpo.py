"""Losses of group-relative policy optimisation, as TRL computes them: grpo (arXiv 2402.03300), dr_grpo (2503.20783), dapo (2503.14476).

Ours, since TRL's trainer calls the language model on token ids and would go past the latents. A test holds them against TRL's own.
P prompts, G answers each, B = P x G of them, A tokens of an answer.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossType = Literal["grpo", "dr_grpo", "dapo"]
LEAST_STD = 1e-4


@dataclass(frozen=True)
class PolicyRecipe:
    loss_type: LossType
    epsilon: float  # a ratio of probabilities counts from 1 - epsilon to 1 + epsilon
    beta: float  # of the divergence from the reference
    max_new_tokens: int  # by which dr_grpo divides, whatever an answer's length

    def __post_init__(self) -> None:
        if self.loss_type not in ("grpo", "dr_grpo", "dapo"):
            raise ValueError(f"loss_type: wanted grpo, dr_grpo or dapo, got {self.loss_type}")


@dataclass(frozen=True)
class PolicyLoss:
    loss: Tensor
    kl: Tensor  # k3, a token
    clip_share: Tensor  # of the tokens whose ratio was cut


def advantages(rewards_PG: Tensor, loss_type: LossType) -> Tensor:
    """[P, G]: a reward less its group's mean; but for dr_grpo in the group's deviations, so that easy and hard prompts weigh the same."""
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    return centred_PG if loss_type == "dr_grpo" else centred_PG / (rewards_PG.std(dim=1, keepdim=True) + LEAST_STD)


def tells_apart(rewards_PG: Tensor) -> Tensor:
    """[P]: whether a group's rewards differ; one whose do not has nothing to say, and would only pull towards the reference."""
    return rewards_PG.amax(dim=1) - rewards_PG.amin(dim=1) > 1e-6


@dataclass(frozen=True)
class Rollout:
    """Size of a step's rollout, groups of one mind included: what a loss is divided by, whichever of its answers are given to it."""

    answers: int
    tokens: int


def policy_loss(
    logp_BA: Tensor,
    old_logp_BA: Tensor,
    reference_logp_BA: Tensor,
    advantages_B: Tensor,
    mask_BA: Tensor,
    recipe: PolicyRecipe,
    whole: Rollout,
) -> PolicyLoss:
    """Log-probabilities of the answers' tokens: now, when they were drawn, and under the reference.

    With beta 0 the loss of the groups that tell something is TRL's of the whole rollout, where the others have no advantage. With another,
    TRL's has their divergence as well. Where each rollout has one optimizer step, the ratio is 1 and epsilon cuts nothing.
    """
    mask_BA, advantages_B1 = mask_BA.to(logp_BA.dtype), advantages_B.unsqueeze(1)
    ratio_BA = (logp_BA - old_logp_BA).exp()
    clipped_BA = ratio_BA.clamp(1 - recipe.epsilon, 1 + recipe.epsilon)
    kl_BA = k3(logp_BA, reference_logp_BA)
    loss_BA = -torch.minimum(ratio_BA * advantages_B1, clipped_BA * advantages_B1) + recipe.beta * kl_BA
    was_cut_BA = clipped_BA * advantages_B1 < ratio_BA * advantages_B1
    tokens = mask_BA.sum().clamp(min=1)
    return PolicyLoss(
        _normalised(loss_BA, mask_BA, recipe, whole), (kl_BA.detach() * mask_BA).sum() / tokens, (was_cut_BA * mask_BA).sum() / tokens
    )


def k3(logp: Tensor, reference_logp: Tensor) -> Tensor:
    """Schulman's estimate of KL(policy || reference): never negative, and without bias where tokens are the policy's own."""
    return (reference_logp - logp).exp() - (reference_logp - logp) - 1


def _normalised(loss_BA: Tensor, mask_BA: Tensor, recipe: PolicyRecipe, whole: Rollout) -> Tensor:
    summed_B = (loss_BA * mask_BA).sum(dim=1)
    if recipe.loss_type == "grpo":
        return (summed_B / mask_BA.sum(dim=1).clamp(min=1)).sum() / whole.answers
    if recipe.loss_type == "dr_grpo":
        return summed_B.sum() / (whole.answers * recipe.max_new_tokens)
    return summed_B.sum() / max(1, whole.tokens)
