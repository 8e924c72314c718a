"""Rows with thoughts for the tiny Llama, and recipes of phases of a few steps: what the tests of the phases share."""

from pathlib import Path
from typing import Any

import torch

from tests.trlm_core.trm.tiny_thinker import BOS, EOS, THINK, TOKENS
from trlm_core.recipes.trm_schema import (
    Depth,
    Phase1,
    Phase1Losses,
    Phase2,
    Phase2Gate,
    Phase2Losses,
    Phase3,
    Phase3Gate,
    Rewards,
    Schedule,
)
from trlm_core.trm.phase_rows import RowTable
from trlm_core.trm.phase_trainer import PhaseRun
from trlm_core.trm.thought_data import ThoughtRow

ZERO = 4  # the id of the digit 0


def make_rows(count: int) -> list[ThoughtRow]:
    """2 to 5 digits; the thought is the digits turned round, the answer its first two."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for number in range(count):
        digits = (ZERO + torch.randint(0, 10, (2 + number % 4,), generator=generator)).tolist()
        turned = tuple(reversed(digits))
        rows.append(ThoughtRow((BOS, *digits, THINK), turned, (*turned[:2], EOS)))
    return rows


def make_table(count: int = 24) -> RowTable:
    return RowTable.of(make_rows(count), TOKENS)


def make_schedule(steps: int, batch: int = 8, learning_rate: float = 3e-3) -> Schedule:
    return Schedule(
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        final_rate_share=0.02,
        warmup_steps=min(2, steps - 1),
        weight_decay=0.1,
        betas=(0.9, 0.95),
        max_gradient_norm=1.0,
    )


def make_phase1(steps: int = 6, kl: float = 0.5) -> Phase1:
    losses = Phase1Losses(identity=1.0, token=1.0, answer=0.5, kl=kl)
    return Phase1(
        identity_steps=steps // 2, training=make_schedule(steps), losses=losses, latent_noise=0.0, norm_examples=1_000, oracle_over_text=0.9
    )


def make_phase2(steps: int = 6, answer_share: float = 0.5, curriculum: tuple[Depth, ...] = (), min_steps: int = 1) -> Phase2:
    return Phase2(
        training=make_schedule(steps),
        ema_decay=0.9,
        losses=Phase2Losses(state=0.3, token=1.0, answer=1.0, halt=0.5),
        answer_share=answer_share,
        curriculum=curriculum,
        min_steps=min_steps,
        gate=Phase2Gate(over_direct=0.1, over_nonrecursive=0.05, best_over_first_step=0.05),
    )


def make_phase3(steps: int = 4, partial: float = 0.5, learning_rate: float = 3e-3) -> Phase3:
    return Phase3(
        training=make_schedule(steps, batch=4, learning_rate=learning_rate),
        ema_decay=0.9,
        group_size=4,
        temperature=1.0,
        epsilon=0.2,
        beta=0.02,
        loss_type="dapo",
        rewards=Rewards(exact=1.0, well_formed=0.1, partial=partial),
        prompts=None,
        halt_loss=0.5,
        gate=Phase3Gate(reward_gain=0.0, accuracy_gain=0.0),
    )


def make_run(workspace: Path, **changes: Any) -> PhaseRun:
    settings: dict[str, Any] = {
        "workspace": workspace,
        "save_steps": 1_000,
        "save_seconds": 1_000.0,
        "keep_saves": 2,
        "log_steps": 1,
        "on_progress": lambda progress: None,
        "is_stopped": lambda: False,
        "precision": "32-true",
        "accelerator": "cpu",
    }
    return PhaseRun(**(settings | changes))
