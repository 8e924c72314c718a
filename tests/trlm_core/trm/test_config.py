"""The depth that the paper's sizes give, counted by the configuration and by the calls themselves."""

from dataclasses import replace

import pytest
import torch

from trlm_core.trm.config import PAPER, depth_of_a_step, effective_depth, training_cost_of_a_step
from trlm_core.trm.recursion import RecursiveReasoningBase


def test_the_paper_s_sizes_pass_an_example_through_672_layers_42_a_step():
    assert (depth_of_a_step(PAPER), effective_depth(PAPER)) == (42, 672)


def test_an_instrumented_net_is_called_t_times_n_plus_1_times_a_step():
    config = replace(PAPER, width=16, n_heads=2)
    core, calls = RecursiveReasoningBase(config), []
    core.net.register_forward_hook(lambda *_: calls.append(1))
    x_BLD = torch.randn(1, 3, 16)
    y_BLD, z_BLD = core.init_state(x_BLD)
    for _ in range(config.n_supervision_steps):
        y_BLD, z_BLD, _ = core.step(x_BLD, y_BLD, z_BLD)
    assert len(calls) == 3 * (6 + 1) * 16
    assert len(calls) * config.n_layers == effective_depth(config)


def test_a_training_step_pays_for_a_backward_of_its_last_deep_recursion_alone():
    assert training_cost_of_a_step(PAPER) == 42 + 2 * 14


def test_the_automatic_residual_scale_falls_with_the_layers_of_a_latent_recursion():
    assert PAPER.residual_scale == pytest.approx(28**-0.5)
    assert replace(PAPER, residual_init_scale=0.25).residual_scale == 0.25


def test_a_width_that_heads_of_even_size_do_not_divide_is_an_error():
    with pytest.raises(ValueError, match=r"width: wanted a multiple of 16 \(8 heads of even size\), got 100"):
        replace(PAPER, width=100)


def test_no_layers_are_an_error():
    with pytest.raises(ValueError, match="n_layers: wanted at least 1, got 0"):
        replace(PAPER, n_layers=0)
