"""The policy losses: by hand, and as TRL's own trainer computes them of the same numbers."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from trl.trainer.grpo_trainer import GRPOTrainer

from trlm_core.trm.grpo import LossType, PolicyRecipe, Rollout, advantages, k3, policy_loss, tells_apart

LOSS_TYPES: list[LossType] = ["grpo", "dr_grpo", "dapo"]
MASK_BA = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
ADVANTAGES_B = torch.tensor([1.2, -0.7, 0.4, -1.5])
WHOLE = Rollout(answers=4, tokens=11)


def log_probabilities(seed: int) -> Tensor:
    return -torch.rand(4, 5, generator=torch.Generator().manual_seed(seed)) * 2


class TRLsLoss(GRPOTrainer):
    """TRL's trainer with the log-probabilities given to it; what computes the loss is TRL's own method."""

    def __init__(self, logp_BA: Tensor, loss_type: LossType, beta: float, advantages_B: Tensor = ADVANTAGES_B) -> None:
        self.model = nn.Identity().train()
        self.accelerator = Accelerator(cpu=True)
        self.args: Any = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
        self.loss_type, self.beta, self.epsilon_low, self.epsilon_high = loss_type, beta, 0.2, 0.2
        self.importance_sampling_level, self.top_entropy_quantile, self.off_policy_mask_threshold = "token", 1.0, None
        self.use_vllm = self.aux_loss_enabled = self._entropy_bonus_enabled = False
        self.current_gradient_accumulation_steps, self.max_completion_length = 1, 6
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._given, self._advantages_B = logp_BA, advantages_B

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        return self._given, torch.zeros_like(self._given), None

    def loss_of(self, old_BA: Tensor, reference_BA: Tensor) -> Tensor:
        empty = torch.zeros(4, 1, dtype=torch.long)
        inputs = {
            "prompt_ids": empty,
            "prompt_mask": empty,
            "completion_ids": torch.zeros(4, 5, dtype=torch.long),
            "completion_mask": MASK_BA,
            "advantages": self._advantages_B,
            "old_per_token_logps": old_BA,
            "ref_per_token_logps": reference_BA,
            "num_items_in_batch": MASK_BA.sum(),
        }
        return self._compute_loss(self.model, inputs)


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradient_are_trl_s(loss_type: LossType, beta: float):
    old_BA, reference_BA = log_probabilities(1), log_probabilities(2)
    ours_BA, trls_BA = (log_probabilities(3).requires_grad_() for _ in range(2))
    ours = policy_loss(ours_BA, old_BA, reference_BA, ADVANTAGES_B, MASK_BA, PolicyRecipe(loss_type, 0.2, beta, max_new_tokens=6), WHOLE)
    trainer = TRLsLoss(trls_BA, loss_type, beta)
    trls = trainer.loss_of(old_BA, reference_BA)
    assert ours.loss.item() == pytest.approx(trls.item(), rel=1e-5)
    ours.loss.backward()
    trls.backward()
    assert ours_BA.grad is not None
    assert trls_BA.grad is not None
    assert torch.allclose(ours_BA.grad, trls_BA.grad, atol=1e-7)
    assert ours.clip_share.item() == pytest.approx(trainer._metrics["train"]["clip_ratio/region_mean"][0], abs=1e-6)
    assert ours.clip_share.item() > 0, "the test needs ratios that are cut"
    if beta:
        assert ours.kl.item() == pytest.approx(trainer._metrics["train"]["kl"][0], rel=1e-5)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_groups_of_one_mind_that_are_left_out_weigh_what_they_weigh_in_trl_s_loss_of_all(loss_type: LossType):
    old_BA, telling = log_probabilities(1), slice(0, 2)
    ours_BA, trls_BA = (log_probabilities(3).requires_grad_() for _ in range(2))
    recipe = PolicyRecipe(loss_type, 0.2, 0.0, max_new_tokens=6)
    arguments = (ours_BA[telling], old_BA[telling], old_BA[telling], ADVANTAGES_B[telling], MASK_BA[telling])
    ours = policy_loss(*arguments, recipe, WHOLE)
    trls = TRLsLoss(trls_BA, loss_type, 0.0, torch.tensor([1.2, -0.7, 0.0, 0.0])).loss_of(old_BA, old_BA)
    assert ours.loss.item() == pytest.approx(trls.item(), rel=1e-5)
    ours.loss.backward()
    trls.backward()
    assert ours_BA.grad is not None
    assert trls_BA.grad is not None
    assert torch.allclose(ours_BA.grad, trls_BA.grad, atol=1e-7)


def test_a_loss_by_hand():
    logp_BA, old_BA = torch.log(torch.tensor([[0.6, 0.5]])), torch.log(torch.tensor([[0.4, 0.5]]))
    recipe = PolicyRecipe("dapo", epsilon=0.2, beta=0.0, max_new_tokens=4)
    made = policy_loss(logp_BA, old_BA, old_BA, torch.tensor([2.0]), torch.ones(1, 2), recipe, Rollout(1, 2))
    assert made.loss.item() == pytest.approx(-(1.2 * 2 + 1.0 * 2) / 2, rel=1e-5)  # a ratio of 1.5 counts as 1.2
    assert made.clip_share.item() == 0.5
    worse = policy_loss(logp_BA, old_BA, old_BA, torch.tensor([-2.0]), torch.ones(1, 2), recipe, Rollout(1, 2))
    assert worse.loss.item() == pytest.approx((1.5 * 2 + 1.0 * 2) / 2, rel=1e-5)  # of a bad answer, it counts in full


def test_what_an_answer_s_length_weighs():
    logp_BA, zeros_BA = torch.zeros(2, 4), torch.zeros(2, 4)
    mask_BA = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    losses = {
        loss_type: policy_loss(
            logp_BA, zeros_BA, zeros_BA, torch.tensor([1.0, -1.0]), mask_BA, PolicyRecipe(loss_type, 0.2, 0.0, 8), Rollout(2, 5)
        ).loss.item()
        for loss_type in LOSS_TYPES
    }
    assert losses == pytest.approx({"grpo": 0.0, "dr_grpo": -3 / 16, "dapo": -3 / 5}, abs=1e-6)


def test_k3_is_never_negative_and_nothing_where_the_two_agree():
    logp, reference = log_probabilities(1), log_probabilities(2)
    assert (k3(logp, reference) >= 0).all()
    assert not k3(logp, logp).any()
    policy = torch.tensor([0.7, 0.2, 0.1])
    other = torch.tensor([0.5, 0.3, 0.2])
    assert (policy * k3(policy.log(), other.log())).sum().item() == pytest.approx((policy * (policy / other).log()).sum().item(), rel=1e-5)


def test_advantages_are_of_the_group_and_in_its_deviations():
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.1, 1.1, 1.1, 1.1]])
    plain_PG = advantages(rewards_PG, "dr_grpo")
    assert plain_PG[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert torch.allclose(advantages(rewards_PG, "grpo")[0], plain_PG[0] / 0.5001, rtol=1e-4)
    assert advantages(rewards_PG, "dapo")[1].abs().max() < 1e-3


def test_a_group_of_one_mind_tells_nothing():
    assert tells_apart(torch.tensor([[1.0, 1.0, 1.0], [0.1, 0.1, 0.0], [0.0, 0.0, 0.0]])).tolist() == [False, True, False]


def test_an_unknown_loss_is_an_error():
    with pytest.raises(ValueError, match="loss_type: wanted grpo, dr_grpo or dapo, got ppo"):
        PolicyRecipe("ppo", 0.2, 0.0, 8)  # type: ignore[arg-type]
