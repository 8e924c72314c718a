"""A thought from hidden states: every weight learns, every row by itself, and halting that freezes what is done."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from trlm_core.training.errors import BadStepError
from trlm_core.trm.config import HiddenStateConfig, RecursionConfig
from trlm_core.trm.hidden_state_trm import HiddenStateTRM

M, D, d = 8, 48, 32
CONFIG = HiddenStateConfig(D, M, RecursionConfig(d, 4, 2, 2, 2, 4, 0.1, 0.25))


def make_trm(config: HiddenStateConfig = CONFIG) -> HiddenStateTRM:
    torch.manual_seed(0)
    trm = HiddenStateTRM(config)
    trm.norm.fit(torch.randn(1_000, M, d) + 2.0, torch.randn(1_000, M, d))
    return trm


def make_halting_trm(h_BLD: torch.Tensor) -> HiddenStateTRM:
    """Its head grows content with the steps, with half of these rows by the third."""
    trm, mask_BL = make_trm(), torch.ones(h_BLD.shape[:2])
    with torch.no_grad():
        trm.core.halt_head.weight.normal_(std=2.0)
        trm.core.halt_head.bias.zero_()
        first_B, *_, third_B = trm(h_BLD, mask_BL, steps=3, halting=False).q_logits_BS.unbind(dim=1)
        trm.core.halt_head.weight.mul_((third_B - first_B).mean().sign())
        third_B = trm(h_BLD, mask_BL, steps=3, halting=False).q_logits_BS[:, -1]
        trm.core.halt_head.bias.fill_(-third_B.median().item() - 1e-3)
    return trm


def test_every_parameter_gets_a_gradient_from_one_supervision_step():
    trm = make_trm()
    x_BMd = trm.read(torch.randn(3, 10, D), torch.ones(3, 10))
    y_BMd, _, q_B = trm.step(x_BMd, *trm.init_state(x_BMd))
    (
        functional.mse_loss(trm.head(y_BMd), torch.randn(3, M, d)) + functional.binary_cross_entropy_with_logits(q_B, torch.ones(3))
    ).backward()
    assert [name for name, weight in trm.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_a_thought_changes_with_the_weights_of_the_recursion():
    trm, h_BLD = make_trm(), torch.randn(2, 10, D)
    before = trm(h_BLD, torch.ones(2, 10), steps=2, halting=False).v_BMd
    with torch.no_grad():
        trm.core.net.blocks[0].get_parameter("feed_forward.down.weight").mul_(2.0)
    assert not torch.allclose(trm(h_BLD, torch.ones(2, 10), steps=2, halting=False).v_BMd, before, atol=1e-3)


def test_the_head_starts_as_the_identity_and_the_loss_reaches_the_compressor_through_the_last_step():
    trm = make_trm()
    thought = trm(torch.randn(2, 10, D), torch.ones(2, 10), steps=3, halting=False)
    assert torch.allclose(thought.v_BMd.square().mean(-1), torch.ones(2, M), atol=1e-3)
    thought.v_BMd[:, 0, 0].sum().backward()
    assert trm.compressor.queries_Md.grad is not None


@pytest.mark.parametrize("length", [1, M - 1, M, 3 * M])
def test_a_prompt_shorter_than_m_or_longer_gives_a_finite_thought(length: int):
    thought = make_trm()(torch.randn(2, length, D), torch.ones(2, length), steps=2, halting=False)
    assert thought.v_BMd.shape == (2, M, d)
    assert thought.v_BMd.isfinite().all()


def test_a_row_thinks_the_same_alone_and_among_others_that_halt_elsewhere():
    h_BLD = torch.randn(16, 10, D)
    trm = make_halting_trm(h_BLD)
    with torch.no_grad():
        together = trm(h_BLD, torch.ones(16, 10), steps=8, halting=True)
        assert together.steps_B.unique().numel() > 1, "the test needs rows that halt at different steps"
        for row in range(16):
            alone = trm(h_BLD[row : row + 1], torch.ones(1, 10), steps=8, halting=True)
            assert alone.steps_B[0] == together.steps_B[row]
            assert torch.allclose(alone.v_BMd[0], together.v_BMd[row], atol=1e-4)


def test_a_row_that_halts_keeps_the_thought_of_that_step():
    h_BLD = torch.randn(16, 10, D)
    trm = make_halting_trm(h_BLD)
    with torch.no_grad():
        halted = trm(h_BLD, torch.ones(16, 10), steps=8, halting=True)
        for row, steps in enumerate(halted.steps_B.tolist()):
            fixed = trm(h_BLD, torch.ones(16, 10), steps=steps, halting=False)
            assert torch.allclose(halted.v_BMd[row], fixed.v_BMd[row], atol=1e-4)


def test_a_fixed_number_of_steps_is_taken_though_every_head_is_content():
    trm = make_trm()
    with torch.no_grad():
        trm.core.halt_head.bias.fill_(9.0)
    h_BLD = torch.randn(2, 10, D)
    assert trm(h_BLD, torch.ones(2, 10), steps=5, halting=False).steps_B.tolist() == [5, 5]
    halted = trm(h_BLD, torch.ones(2, 10), steps=5, halting=True)
    assert halted.steps_B.tolist() == [1, 1]
    assert halted.q_logits_BS.tolist() == [[9.0], [9.0]]


def test_an_all_padding_row_gives_a_finite_thought_and_finite_gradients():
    trm = make_trm()
    thought = trm(torch.randn(2, 4, D), torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]), steps=2, halting=False)
    thought.v_BMd.square().sum().backward()
    assert thought.v_BMd.isfinite().all()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in trm.parameters())


def test_a_model_in_bfloat16_is_read_by_a_float32_trm_with_and_without_autocast():
    trm, h_BLD = make_trm(), torch.randn(2, 10, D, dtype=torch.bfloat16)
    plain = trm(h_BLD, torch.ones(2, 10), steps=2, halting=False).v_BMd
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = trm(h_BLD, torch.ones(2, 10), steps=2, halting=False).v_BMd
    assert plain.dtype == torch.float32
    assert (mixed.float() - plain).square().mean() < 0.01


def test_slots_differ_though_every_latent_is_the_same():
    trm = make_trm()
    x_BMd = trm.read(torch.zeros(1, 4, D), torch.tensor([[0, 0, 0, 0]]))  # nothing was read: zeros in every slot
    assert (x_BMd[0, 1:] - x_BMd[0, :-1]).norm(dim=-1).min() > 1.0


ABLATED = {
    "norm": replace(CONFIG, recursion=replace(CONFIG.recursion, norm="pre")),
    "latent_norm": replace(CONFIG, latent_norm=False),
    "slot_embeddings": replace(CONFIG, slot_embeddings=False),
}


@pytest.mark.parametrize("key", ABLATED)
def test_an_ablation_has_the_same_weights_of_the_same_seed_and_another_thought(key: str):
    whole, ablated, h_BLD = make_trm(), make_trm(ABLATED[key]), torch.randn(2, 10, D)
    assert whole.state_dict().keys() == ablated.state_dict().keys()
    assert all(torch.equal(each, ablated.state_dict()[name]) for name, each in whole.state_dict().items())
    thoughts = [trm(h_BLD, torch.ones(2, 10), steps=1, halting=False).v_BMd for trm in (whole, ablated)]
    assert not torch.allclose(*thoughts, atol=1e-2)


@pytest.mark.parametrize("key", ["latent_norm", "slot_embeddings"])
def test_what_the_recursion_reads_is_left_without_what_is_ablated_alone(key: str):
    trm, latents_BMd = make_trm(ABLATED[key]), torch.randn(2, M, d)
    read = {
        "latent_norm": 2**-0.5 * (latents_BMd + trm.slots_Md),
        "slot_embeddings": (latents_BMd - trm.norm.mean_pre_Md) / trm.norm.std_pre_d,
    }
    assert torch.allclose(trm.place(latents_BMd), read[key], atol=1e-6)


def test_without_slot_embeddings_slots_with_the_same_latent_are_read_as_one():
    trm = make_trm(ABLATED["slot_embeddings"])
    trm.norm.mean_pre_Md.zero_()
    x_BMd = trm.place(torch.ones(1, M, d))
    assert torch.equal(x_BMd[0, 1:], x_BMd[0, :-1])


def test_a_recursion_that_blows_up_is_an_error_and_no_thought():
    deep = replace(CONFIG, recursion=replace(CONFIG.recursion, n_latent_steps=6, n_deep_recursions=3, norm="pre"))
    with pytest.raises(BadStepError, match="wanted states that are finite after 32 supervision steps"):
        make_trm(deep)(torch.randn(2, 10, D), torch.ones(2, 10), steps=32, halting=False)


def test_no_steps_are_an_error():
    with pytest.raises(ValueError, match="steps: wanted at least 1, got 0"):
        make_trm()(torch.randn(1, 4, D), torch.ones(1, 4), steps=0, halting=False)


def test_a_model_of_another_width_is_an_error():
    with pytest.raises(ValueError, match=r"wanted a width of 48 \(hidden_size\), got 64"):
        make_trm()(torch.randn(1, 4, 64), torch.ones(1, 4), steps=1, halting=False)


def test_a_thought_of_more_steps_needs_no_more_memory_for_its_backward():
    def saved_bytes(steps: int) -> int:
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            make_trm(CONFIG)(torch.randn(1, 4, D), torch.ones(1, 4), steps=steps, halting=False)
        return total

    assert saved_bytes(16) == pytest.approx(saved_bytes(2), rel=0.01)
