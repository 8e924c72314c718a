"""The compressor and its expander: any length, pads on either side, nothing from masked rows, and states that come back."""

import pytest
import torch
from torch.nn import functional

from trlm_core.trm.compressor import LatentAttentionCompressor, LatentExpander, positions, relative_places
from trlm_core.trm.config import HiddenStateConfig, RecursionConfig

M, D, d = 8, 48, 32
CONFIG = HiddenStateConfig(D, M, RecursionConfig(d, 4, 2, 2, 1, 1, 0.0, 0.25))


def make_compressor() -> LatentAttentionCompressor:
    torch.manual_seed(0)
    return LatentAttentionCompressor(CONFIG)


@pytest.mark.parametrize("length", [1, 2, M - 1, M, M + 1, 3 * M])
def test_a_prompt_of_any_length_gives_m_finite_latents_and_gradients(length: int):
    compressor = make_compressor()
    latents_BMd = compressor(torch.randn(2, length, D), torch.ones(2, length))
    latents_BMd.square().sum().backward()
    assert latents_BMd.shape == (2, M, d)
    assert latents_BMd.isfinite().all()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in compressor.parameters())


def test_a_batch_of_mixed_lengths_is_its_rows_one_by_one_wherever_the_pads_lie():
    compressor, rows = make_compressor(), [torch.randn(length, D) for length in (3, 11, 20)]
    alone = torch.cat([compressor(row[None], torch.ones(1, len(row))) for row in rows])
    for left in (True, False):
        padded = [functional.pad(row, (0, 0, 20 - len(row), 0) if left else (0, 0, 0, 20 - len(row)), value=9.0) for row in rows]
        masks = [functional.pad(torch.ones(len(row)), (20 - len(row), 0) if left else (0, 20 - len(row))) for row in rows]
        assert torch.allclose(compressor(torch.stack(padded), torch.stack(masks)), alone, atol=1e-5)


def test_a_row_that_is_all_masked_gives_zeros_and_no_nan_in_any_gradient():
    compressor, mask_BL = make_compressor(), torch.tensor([[0, 0, 0], [1, 1, 0]])
    latents_BMd = compressor(torch.randn(2, 3, D), mask_BL)
    assert not latents_BMd[0].any()
    assert latents_BMd[1].any()
    latents_BMd.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in compressor.parameters())


def test_what_is_masked_changes_nothing_to_the_bit():
    compressor, h_BLD, mask_BL = make_compressor(), torch.randn(1, 6, D), torch.tensor([[1, 1, 1, 1, 0, 0]])
    changed_BLD = h_BLD.clone()
    changed_BLD[0, 4:] = 77.0
    assert torch.equal(compressor(h_BLD, mask_BL), compressor(changed_BLD, mask_BL))


def test_hidden_states_of_another_width_are_an_error():
    with pytest.raises(ValueError, match=r"hidden states: wanted a width of 48 \(hidden_size\), got 64"):
        make_compressor()(torch.randn(1, 5, 64), torch.ones(1, 5))


def test_bfloat16_states_are_read_by_float32_weights_without_autocast():
    latents_BMd = make_compressor()(torch.randn(1, 5, D, dtype=torch.bfloat16), torch.ones(1, 5))
    assert latents_BMd.dtype == torch.float32


def test_each_latent_reads_its_own_stretch_of_the_span():
    compressor, h_BLD = make_compressor(), torch.randn(1, 64, D, requires_grad=True)
    weights = []
    for slot in (0, M - 1):
        (gradient_BLD,) = torch.autograd.grad(compressor(h_BLD, torch.ones(1, 64))[0, slot].square().sum(), h_BLD)
        weights.append(gradient_BLD[0].norm(dim=-1))
    assert weights[0][:8].mean() > 3 * weights[0][-8:].mean()
    assert weights[1][-8:].mean() > 3 * weights[1][:8].mean()


def test_positions_count_valid_tokens_and_places_run_from_0_to_1():
    mask_BL = torch.tensor([[0, 0, 1, 1, 1], [1, 0, 0, 0, 0]])
    assert positions(mask_BL)[0, 2:].tolist() == [0, 1, 2]
    assert relative_places(mask_BL)[0, 2:].tolist() == [0.0, 0.5, 1.0]
    assert relative_places(mask_BL)[1, 0] == 0.0


@pytest.mark.parametrize("length", [1, M, 200])
def test_the_expander_gives_states_of_the_model_s_width_for_any_length(length: int):
    states_BLD = LatentExpander(CONFIG)(torch.randn(2, M, d), torch.ones(2, length))
    assert states_BLD.shape == (2, length, D)
    assert states_BLD.isfinite().all()


def test_the_expander_tells_neighbours_in_a_long_span_apart():
    torch.manual_seed(0)
    states_BLD = LatentExpander(CONFIG)(torch.randn(1, M, d), torch.ones(1, 2_000))
    steps = (states_BLD[0, 1:] - states_BLD[0, :-1]).norm(dim=-1)
    assert (steps > 0.05 * states_BLD.std() * D**0.5).all()


def test_states_come_back_from_their_latents_after_a_short_training():
    torch.manual_seed(0)
    compressor, expander, mask_BL = LatentAttentionCompressor(CONFIG), LatentExpander(CONFIG), torch.ones(32, M)
    table_VD = torch.randn(6, D)
    optimizer = torch.optim.AdamW([*compressor.parameters(), *expander.parameters()], lr=3e-3)
    error = torch.tensor(1.0)
    for _ in range(250):
        h_BLD = table_VD[torch.randint(6, (32, M))]
        error = functional.mse_loss(expander(compressor(h_BLD, mask_BL), mask_BL), h_BLD) / h_BLD.var()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.15
