"""Held-out rows of a stage: loss against the checkpoint that it started from, and for pairs the preference accuracy with its controls."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from trlm_core.evals.reasoning import Estimate, estimate
from trlm_core.text.tokenizer import IGNORED
from trlm_core.training.batching import cut_micro_batches
from trlm_core.training.sft import collate_sft

TOKENS_PER_BATCH = 1024
Rows = Sequence[dict[str, Any]]
OnBatch = Callable[[int], None]


class HeldOutLoss(BaseModel):
    """Mean negative log-likelihood of the label tokens, in nats a token; `apo_zero` for pairs, whose start is 1 by its definition.

    Without held-out rows (`rows` 0) the losses say nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: float
    loss_at_start: float
    loss_outside_new_tokens: float | None  # SFT only
    loss_at_start_outside_new_tokens: float | None
    rows: int


class Preferences(BaseModel):
    """Implicit rewards on held-out pairs: share of pairs whose chosen reply is rewarded more, and by how much."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: str  # "unseen", "seen" or one kind
    accuracy: Estimate
    margin: Estimate  # beta x (log-ratio of chosen - log-ratio of rejected)
    start_log_prob_accuracy: Estimate  # control: the start prefers by its own log-probs
    length_accuracy: Estimate  # control: sees only the lengths; a tie counts half


@torch.no_grad()
def token_log_probs(model: PreTrainedModel, rows: Rows, pad: int, on_batch: OnBatch = lambda done: None) -> list[torch.Tensor]:
    """For each row {"input_ids", "labels"}: log-probs of its label tokens, in order, float32; bf16 autocast as in training."""
    model.eval()
    head: Any = model.get_output_embeddings()
    found: dict[int, torch.Tensor] = {}
    for positions in cut_micro_batches([len(row["input_ids"]) for row in rows], TOKENS_PER_BATCH):
        batch = collate_sft([rows[position] for position in positions], pad)
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            hidden_BLD = model.base_model(
                input_ids=batch["input_ids"].to(model.device), attention_mask=batch["attention_mask"].to(model.device)
            ).last_hidden_state
        for position, hidden_LD, labels_L in zip(positions, hidden_BLD, batch["labels"].to(model.device), strict=True):
            kept_L = labels_L[1:] != IGNORED
            logits_NV = head(hidden_LD[:-1][kept_L].float())
            found[position] = torch.log_softmax(logits_NV, dim=-1).gather(1, labels_L[1:][kept_L][:, None])[:, 0].cpu()
        on_batch(len(positions))
    return [found[position] for position in range(len(rows))]


def held_out_loss(rows: Rows, after: list[torch.Tensor], start: list[torch.Tensor], new_tokens: Sequence[int]) -> HeldOutLoss:
    outside = [torch.tensor([label not in new_tokens for label in row["labels"][1:] if label != IGNORED]) for row in rows]
    return HeldOutLoss(
        loss=_nll(after),
        loss_at_start=_nll(start),
        loss_outside_new_tokens=_nll([each[kept] for each, kept in zip(after, outside, strict=True)]),
        loss_at_start_outside_new_tokens=_nll([each[kept] for each, kept in zip(start, outside, strict=True)]),
        rows=len(rows),
    )


def as_conversations(pairs: Rows) -> list[dict[str, Any]]:
    """Two SFT rows a pair, chosen then rejected, labelled on the reply alone."""
    return [
        {"input_ids": pair["prompt_ids"] + pair[side], "labels": [IGNORED] * len(pair["prompt_ids"]) + pair[side]}
        for pair in pairs
        for side in ("chosen_ids", "rejected_ids")
    ]


def preference_results(
    pairs: Rows, after: list[torch.Tensor], start: list[torch.Tensor], *, beta: float, seen_faults: Sequence[str], longer_is_chosen: bool
) -> tuple[HeldOutLoss, list[Preferences]]:
    """From the log-probs of `as_conversations(pairs)`: the apo_zero loss (arXiv 2408.06266) and preferences by kind of fault."""
    sums_P2, start_P2 = (torch.tensor([float(each.sum()) for each in log_probs]).view(-1, 2) for log_probs in (after, start))
    rewards_P2 = beta * (sums_P2 - start_P2)
    loss = (1 - torch.sigmoid(rewards_P2[:, 0]) + torch.sigmoid(rewards_P2[:, 1])).sum() / max(len(pairs), 1)
    groups = {
        "unseen": [index for index, pair in enumerate(pairs) if pair["fault"] not in seen_faults],
        "seen": [index for index, pair in enumerate(pairs) if pair["fault"] in seen_faults],
        **{
            kind: [i for i, pair in enumerate(pairs) if pair["fault"] == kind]
            for kind in sorted({pair["fault"] for pair in pairs if pair["fault"]})
        },
    }
    preferences = [
        _preferences(name, [pairs[index] for index in chosen], rewards_P2[chosen], start_P2[chosen], longer_is_chosen)
        for name, chosen in groups.items()
        if chosen
    ]
    whole = HeldOutLoss(
        loss=float(loss), loss_at_start=1.0, loss_outside_new_tokens=None, loss_at_start_outside_new_tokens=None, rows=len(pairs)
    )
    return whole, preferences


def longer_is_chosen(pairs: Rows) -> bool:
    """What the control that sees only lengths learns from the training pairs: whether the longer reply tends to be the chosen one."""
    return sum(_length_gap(pair) for pair in pairs) >= 0


def _preferences(name: str, pairs: Rows, rewards_P2: torch.Tensor, start_P2: torch.Tensor, longer: bool) -> Preferences:
    gaps = [_length_gap(pair) * (1 if longer else -1) for pair in pairs]
    return Preferences(
        fault=name,
        accuracy=estimate((rewards_P2[:, 0] > rewards_P2[:, 1]).float().tolist()),
        margin=estimate((rewards_P2[:, 0] - rewards_P2[:, 1]).tolist()),
        start_log_prob_accuracy=estimate((start_P2[:, 0] > start_P2[:, 1]).float().tolist()),
        length_accuracy=estimate(0.5 if gap == 0 else float(gap > 0) for gap in gaps),
    )


def _length_gap(pair: dict[str, Any]) -> int:
    return len(pair["chosen_ids"]) - len(pair["rejected_ids"])


def _nll(log_probs: list[torch.Tensor]) -> float:
    count = sum(len(each) for each in log_probs)
    return -math.fsum(float(each.sum()) for each in log_probs) / max(count, 1)
