"""The block: unit scale out, no biases, positions by distance alone, a residual scale that lets it learn."""

import itertools

import pytest
import torch
from torch.nn import functional

from trlm_core.trm.blocks import PreNormBlock, TransformerBlock, attend, rms, rotary_table, rotate
from trlm_core.trm.config import PAPER, RecursionConfig
from trlm_core.trm.recursion import RecursiveReasoningBase


def test_a_block_s_output_has_unit_rms_whatever_the_scale_of_its_input():
    torch.manual_seed(0)
    block = TransformerBlock(32, 4, residual_scale=0.25)
    for scale in (0.01, 1.0, 1e4):
        rms_BL = block(scale * torch.randn(2, 5, 32)).square().mean(-1).sqrt()
        assert torch.allclose(rms_BL, torch.ones(2, 5), atol=1e-3)


def test_a_block_has_projections_alone_no_bias_and_no_norm_weight():
    names = [name for name, _ in TransformerBlock(32, 4, residual_scale=0.25).named_parameters()]
    assert names == ["qkv.weight", "out.weight", "feed_forward.gate_up.weight", "feed_forward.down.weight"]


def test_the_inner_width_is_eight_thirds_to_a_multiple_of_32():
    assert TransformerBlock(576, 9, residual_scale=1.0).feed_forward.down.in_features == 1536
    assert TransformerBlock(64, 4, residual_scale=1.0).feed_forward.down.in_features == 160


def test_the_residual_projections_start_scaled_and_the_others_do_not():
    torch.manual_seed(0)
    block = TransformerBlock(256, 4, residual_scale=0.25)
    stds = {name: (weight.std() * weight.shape[1] ** 0.5).item() for name, weight in block.named_parameters()}
    assert stds["out.weight"] == pytest.approx(0.22, abs=0.01)  # truncated at two deviations: 0.88 of it
    assert stds["feed_forward.down.weight"] == pytest.approx(0.22, abs=0.01)
    assert stds["qkv.weight"] == pytest.approx(0.88, abs=0.02)
    assert stds["feed_forward.gate_up.weight"] == pytest.approx(0.88, abs=0.02)


def test_scores_depend_on_the_distance_of_two_positions_alone():
    torch.manual_seed(0)
    q_BHLK, k_BHLK = torch.randn(1, 1, 1, 8).expand(1, 1, 12, 8), torch.randn(1, 1, 1, 8).expand(1, 1, 12, 8)
    scores_LL = (rotate(q_BHLK) @ rotate(k_BHLK).mT)[0, 0]
    assert torch.allclose(scores_LL[:-1, :-1], scores_LL[1:, 1:], atol=1e-5)
    assert not torch.allclose(scores_LL[0, 0], scores_LL[0, 5], atol=1e-2)


def test_a_position_sees_those_after_it():
    torch.manual_seed(0)
    block, x_BLD = TransformerBlock(32, 4, residual_scale=0.25), torch.randn(1, 5, 32)
    changed_BLD = x_BLD.clone()
    changed_BLD[0, 4] += 1.0
    assert not torch.equal(block(x_BLD)[0, 0], block(changed_BLD)[0, 0])


def test_attention_in_bfloat16_is_that_of_float32_rounded_and_so_is_its_gradient():
    torch.manual_seed(0)
    q_BHLK, k_BHLK, v_BHLK = (torch.randn(2, 2, 7, 8).bfloat16().requires_grad_() for _ in range(3))
    exact_q_BHLK = q_BHLK.detach().float().requires_grad_()
    wanted_BHLK = functional.scaled_dot_product_attention(exact_q_BHLK, k_BHLK.detach().float(), v_BHLK.detach().float())
    with torch.autocast("cpu", torch.bfloat16):
        got_BHLK = attend(q_BHLK, k_BHLK, v_BHLK)
    assert torch.equal(got_BHLK, wanted_BHLK.bfloat16())
    got_BHLK.float().sum().backward()
    wanted_BHLK.sum().backward()
    assert q_BHLK.grad is not None
    assert exact_q_BHLK.grad is not None
    assert torch.equal(q_BHLK.grad, exact_q_BHLK.grad.bfloat16())


def test_a_block_trains_after_it_ran_in_inference_mode():
    rotary_table.cache_clear()
    block, x_BLD = TransformerBlock(32, 4, residual_scale=0.25), torch.randn(1, 7, 32)
    with torch.inference_mode():
        block(x_BLD)
    block(x_BLD).sum().backward()
    assert block.qkv.weight.grad is not None


def test_rms_is_computed_in_float32_and_handed_back_as_it_came():
    x_BLD = torch.full((1, 1, 4096), 300.0, dtype=torch.float16)  # its squares do not fit into float16
    assert rms(x_BLD).dtype == torch.float16
    assert torch.allclose(rms(x_BLD).float(), torch.ones(1, 1, 4096), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_64_supervision_steps_neither_blow_up_nor_die(dtype: torch.dtype):
    torch.manual_seed(0)
    core = RecursiveReasoningBase(RecursionConfig(32, 4, 2, 6, 3, 16, 0.1, "auto")).to(dtype)
    x_BLD = torch.randn(2, 5, 32, dtype=dtype)
    y_BLD, z_BLD = core.init_state(x_BLD)
    with torch.no_grad():
        for _ in range(64):
            y_BLD, z_BLD, _ = core.step(x_BLD, y_BLD, z_BLD)
    for state_BLD in (y_BLD, z_BLD):
        assert 0.3 < state_BLD.float().square().mean().sqrt() < 3.0


def test_a_pre_norm_block_is_the_same_weights_with_the_norm_before_them_and_none_at_the_end():
    torch.manual_seed(0)
    post, pre, x_BLD = TransformerBlock(32, 4, residual_scale=0.25), PreNormBlock(32, 4, residual_scale=0.25), 10 * torch.randn(2, 5, 32)
    pre.load_state_dict(post.state_dict())
    half_way_BLD = x_BLD + post._attention(rms(x_BLD))
    assert torch.equal(pre(x_BLD), half_way_BLD + post.feed_forward(rms(half_way_BLD)))
    assert pre(x_BLD).square().mean().sqrt() > 5.0, "nothing brings its output to unit scale"


def test_with_pre_norm_the_paper_s_recursion_grows_several_hundredfold_a_step():
    torch.manual_seed(0)
    core = RecursiveReasoningBase(RecursionConfig(32, 4, 2, 6, 3, 16, 0.1, "auto", norm="pre"))
    x_BLD = torch.randn(2, 5, 32)
    (y_BLD, z_BLD), scales = core.init_state(x_BLD), []
    with torch.no_grad():
        for _ in range(16):
            y_BLD, z_BLD, _ = core.step(x_BLD, y_BLD, z_BLD)
            scales.append(y_BLD.double().square().mean().sqrt().item())
    assert all(300 < later / before < 1_000 for before, later in itertools.pairwise(scales[:5]))
    assert not torch.tensor(scales[-1]).isfinite()


def regression_loss(residual_init_scale: float) -> float:
    """After 80 steps that teach y to be a linear map of x."""
    torch.manual_seed(0)
    config = RecursionConfig(96, 4, 2, 3, 1, 1, 0.0, residual_init_scale)
    core, map_DD = RecursiveReasoningBase(config), torch.randn(96, 96) * 96**-0.5
    optimizer = torch.optim.AdamW(core.parameters(), lr=1.5e-3, betas=(0.9, 0.95))
    loss = torch.tensor(0.0)
    for _ in range(80):
        x_BLD = torch.randn(16, 16, 96)
        y_BLD, _, _ = core.step(x_BLD, *core.init_state(x_BLD))
        loss = functional.mse_loss(y_BLD, x_BLD @ map_DD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_80_steps_learn_a_linear_map_with_the_residual_scale_and_do_not_without():
    assert regression_loss(0.25) < 0.5 < regression_loss(1.0)


def test_the_paper_s_configuration_is_of_the_paper_s_size():
    parameters = sum(weight.numel() for weight in RecursiveReasoningBase(PAPER).net.parameters())
    assert 6.0e6 < parameters < 7.0e6
