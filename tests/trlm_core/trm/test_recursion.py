"""The recursion: what has a gradient and what has none, and that its weights are what the loss depends on."""

import copy

import torch
from torch.nn import functional

from trlm_core.trm.config import RecursionConfig
from trlm_core.trm.recursion import RecursiveReasoningBase

CONFIG = RecursionConfig(32, 4, 2, 2, 3, 4, 0.1, 0.25)
TARGET_BLD = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))


def make_core() -> RecursiveReasoningBase:
    torch.manual_seed(0)
    return RecursiveReasoningBase(CONFIG)


def loss_of(core: RecursiveReasoningBase, x_BLD: torch.Tensor) -> torch.Tensor:
    y_BLD, _, q_B = core.step(x_BLD, *core.init_state(x_BLD))
    return functional.mse_loss(y_BLD, TARGET_BLD) + functional.binary_cross_entropy_with_logits(q_B, torch.ones(2))


def test_every_parameter_gets_a_gradient():
    core = make_core()
    loss_of(core, torch.randn(2, 5, 32)).backward()
    assert [name for name, weight in core.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_the_loss_changes_with_the_net_s_weights():
    core, x_BLD = make_core(), torch.randn(2, 5, 32)
    other = copy.deepcopy(core)
    with torch.no_grad():
        other.net.blocks[0].get_parameter("qkv.weight").mul_(1.5)
    assert loss_of(core, x_BLD) != loss_of(other, x_BLD)


def test_the_answer_of_a_step_has_a_gradient_though_the_state_that_it_began_from_has_none():
    core, x_BLD = make_core(), torch.randn(2, 5, 32)
    y_BLD, z_BLD, _ = core.step(x_BLD, *core.init_state(x_BLD))
    assert y_BLD.requires_grad
    assert z_BLD.requires_grad
    next_y_BLD, _, _ = core.step(x_BLD, y_BLD.detach(), z_BLD.detach())
    assert next_y_BLD.requires_grad


def test_the_gradient_is_that_of_the_last_latent_recursion_alone():
    core, x_BLD = make_core(), torch.randn(2, 5, 32)
    y_BLD, z_BLD = core.init_state(x_BLD)
    with torch.no_grad():
        for _ in range(CONFIG.n_deep_recursions - 1):
            y_BLD, z_BLD = core.latent_recursion(x_BLD, y_BLD, z_BLD)
    by_hand = torch.autograd.grad(core.latent_recursion(x_BLD, y_BLD, z_BLD)[0].square().sum(), [*core.net.parameters()])
    by_step = torch.autograd.grad(core.step(x_BLD, *core.init_state(x_BLD))[0].square().sum(), [*core.net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(by_hand, by_step, strict=True))


def test_a_graph_does_not_grow_with_the_deep_recursions():
    x_BLD, calls = torch.randn(2, 5, 32), []
    core = make_core()
    core.net.register_forward_hook(lambda module, args, out: calls.append(out.requires_grad))
    core.step(x_BLD, *core.init_state(x_BLD))
    assert calls == [False] * 6 + [True] * 3


def test_where_y_and_z_start_is_saved_and_not_trained():
    core = make_core()
    assert {"y_init_D", "z_init_D"} <= core.state_dict().keys()
    assert {"y_init_D", "z_init_D"}.isdisjoint(dict(core.named_parameters()))


def test_nothing_halts_at_first():
    core, x_BLD = make_core(), torch.randn(2, 5, 32)
    assert core.step(x_BLD, *core.init_state(x_BLD))[2].tolist() == [-5.0, -5.0]
