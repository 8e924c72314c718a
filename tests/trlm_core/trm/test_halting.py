"""Halting: each row by itself, with exploration, and its slot handed to another example."""

from dataclasses import replace

import torch

from trlm_core.trm.config import RecursionConfig
from trlm_core.trm.halting import Carry, advance, draw_fewest_steps, first_carry, reset
from trlm_core.trm.recursion import RecursiveReasoningBase

CONFIG = RecursionConfig(16, 2, 1, 1, 1, 4, 0.1, 0.25)


def carry_of(steps: list[int], fewest: list[int]) -> Carry:
    state_BLD = torch.arange(len(steps) * 48.0).reshape(-1, 3, 16)
    return Carry(state_BLD, -state_BLD, torch.tensor(steps), torch.tensor(fewest), torch.zeros(len(steps), dtype=torch.bool))


def after(carry: Carry, logits: list[float]) -> Carry:
    return advance(CONFIG, carry, carry.y_BLD + 1, carry.z_BLD + 1, torch.tensor(logits))


def test_a_row_is_done_when_its_own_head_is_content_or_its_steps_are_spent():
    assert after(carry_of([0, 0, 3, 3], [1, 1, 1, 1]), [2.0, -2.0, 2.0, -2.0]).done_B.tolist() == [True, False, True, True]


def test_a_row_s_end_does_not_depend_on_its_neighbours():
    together = after(carry_of([0, 1, 2], [1, 1, 1]), [-0.1, 5.0, 5.0])
    alone = after(carry_of([0], [1]), [-0.1])
    assert together.done_B[0] == alone.done_B[0]
    assert not alone.done_B[0]


def test_an_exploring_row_goes_on_though_its_head_is_content():
    assert after(carry_of([0, 1, 2], [3, 3, 3]), [5.0, 5.0, 5.0]).done_B.tolist() == [False, False, True]


def test_what_is_carried_has_no_graph():
    y_BLD = torch.randn(2, 3, 16, requires_grad=True) * 2
    carry = advance(CONFIG, carry_of([0, 0], [1, 1]), y_BLD, y_BLD, torch.zeros(2))
    assert y_BLD.requires_grad
    assert not carry.y_BLD.requires_grad
    assert not carry.z_BLD.requires_grad


def test_slots_that_are_done_start_anew_and_the_others_go_on_to_the_bit():
    core = RecursiveReasoningBase(CONFIG)
    carry = replace(carry_of([4, 2], [1, 4]), done_B=torch.tensor([True, False]))
    renewed = reset(core, carry, torch.Generator().manual_seed(0))
    assert torch.equal(renewed.y_BLD[0], core.y_init_D.expand(3, 16))
    assert torch.equal(renewed.z_BLD[0], core.z_init_D.expand(3, 16))
    assert torch.equal(renewed.y_BLD[1], carry.y_BLD[1])
    assert torch.equal(renewed.z_BLD[1], carry.z_BLD[1])
    assert renewed.steps_B.tolist() == [0, 2]
    assert renewed.fewest_steps_B[1] == 4
    assert not renewed.done_B.any()


def test_at_first_every_slot_wants_an_example():
    carry = first_carry(RecursiveReasoningBase(CONFIG), torch.zeros(3, 5, 16))
    assert carry.done_B.tolist() == [True] * 3


def test_a_tenth_of_the_rows_explore_to_a_random_step_from_2_to_n():
    counts = torch.bincount(draw_fewest_steps(CONFIG, 30_000, torch.Generator().manual_seed(0)), minlength=5)
    assert counts[0] == 0
    assert 0.89 < counts[1] / 30_000 < 0.91
    assert all(0.031 < count / 30_000 < 0.036 for count in counts[2:])


def test_one_supervision_step_is_the_most_where_the_configuration_says_so():
    once = replace(CONFIG, n_supervision_steps=1, halt_exploration_prob=1.0)
    carry = replace(carry_of([0, 0], [1, 1]), fewest_steps_B=draw_fewest_steps(once, 2, torch.Generator().manual_seed(0)))
    assert advance(once, carry, carry.y_BLD, carry.z_BLD, torch.tensor([-5.0, -5.0])).done_B.all()
