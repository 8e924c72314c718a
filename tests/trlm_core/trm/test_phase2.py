"""Phase 2: every part gets its gradient, a step is one supervision step of every slot, and the curriculum ends at full depth."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.trlm_core.trm.tiny_phases import make_phase2, make_schedule, make_table
from tests.trlm_core.trm.tiny_thinker import LORA, make_model
from trlm_core.recipes.trm_schema import Adapter, Depth, Phase2, Phase2b
from trlm_core.trm.config import HiddenStateConfig, RecursionConfig
from trlm_core.trm.controls import PauseModule, mean_thought, non_recursive_twin
from trlm_core.trm.phase2 import Phase2Module, has_answers, recursion_at
from trlm_core.trm.phase2b import Phase2bModule
from trlm_core.trm.phase_module import PhaseModule
from trlm_core.trm.phase_rows import latents_of, live_states

RECURSION = RecursionConfig(16, 2, 2, 2, 2, 3, 0.0, 0.25)


def make_module(recipe: Phase2 | None = None, recursion: RecursionConfig = RECURSION) -> Phase2Module:
    model, table = make_model(states=HiddenStateConfig(32, 4, recursion)), make_table()
    return Phase2Module(model, table, latents_of(model, table, live_states(model)), recipe or make_phase2(), seed=0)


def content(module: Phase2Module) -> Phase2Module:
    """With a halting head that holds everything to be right."""
    with torch.no_grad():
        module.trm.core.halt_head.bias.fill_(50.0)
    return module


def test_recursion_slots_and_heads_are_trained_and_nothing_else():
    module = make_module()
    trained = {".".join(name.split(".")[2:4]) for name, each in module.named_parameters() if each.requires_grad}
    assert trained == {"trm.slots_Md", "trm.core", "trm.head"}


@pytest.mark.parametrize("step", [0, 5])
def test_every_trained_parameter_has_a_gradient_after_a_step(step: int):
    module = make_module()
    made = module.step_loss(step)
    made.loss.backward()
    dead = [name for name, weight in module.trained.items() if weight.grad is None or not weight.grad.any()]
    assert dead == [], "an untrained halting head starts with zero weights, and still has a gradient"


def test_the_loss_changes_with_the_weights_of_the_trm():
    first, second = make_module(), make_module()
    with torch.no_grad():
        second.trm.core.net.blocks[0].get_parameter("feed_forward.down.weight").mul_(3.0)
    assert first.step_loss(0).loss.item() != second.step_loss(0).loss.item()


def test_a_loss_has_a_gradient_and_the_carry_that_follows_has_none():
    module = make_module()
    made = module.step_loss(0)
    assert made.loss.requires_grad
    assert not module.carry.y_BLD.requires_grad
    assert not module.carry.z_BLD.requires_grad
    assert module.carry.y_BLD.abs().sum() > 0


def test_a_step_is_one_supervision_step_of_every_slot():
    module, calls = make_module(), []
    module.trm.core.net.register_forward_hook(lambda *_: calls.append(1))
    ages, rows = [], []
    for step in range(4):
        module.step_loss(step)
        ages.append(module.carry.steps_B.tolist())
        rows.append(module.rows_B.tolist())
    assert len(calls) == 4 * 2 * (2 + 1)
    assert ages == [[1] * 8, [2] * 8, [3] * 8, [1] * 8]  # at the start no head is content: N steps each
    assert rows[0] == rows[1] == rows[2] != rows[3]


def test_a_content_head_frees_its_slot_at_once_but_not_before_the_least_steps():
    at_once = content(make_module())
    at_once.step_loss(0)
    assert at_once.carry.done_B.all()
    later = content(make_module(make_phase2(min_steps=2)))
    later.step_loss(0)
    assert not later.carry.done_B.any()
    later.step_loss(1)
    assert later.carry.done_B.all()


def test_exploring_slots_go_on_though_their_head_is_content():
    module = content(make_module(recursion=replace(RECURSION, halt_exploration_prob=1.0)))
    module.step_loss(0)
    assert not module.carry.done_B.any()


def test_the_halting_head_is_told_whether_the_answer_is_right_once_answers_are_there():
    module = make_module()
    assert "loss_answer" not in module.step_loss(0).metrics
    assert "loss_answer" in module.step_loss(3).metrics


def test_a_thought_is_not_read_where_no_loss_and_no_halting_head_goes_by_it():
    recipe = make_phase2(answer_share=1.0)
    module = make_module(recipe.model_copy(update={"losses": recipe.losses.model_copy(update={"token": 0.0})}))
    module.model.thinker.expander.register_forward_hook(lambda *_: pytest.fail("it was read"))
    assert {"loss_state", "loss_answer", "loss_halt"} <= set(module.step_loss(0).metrics)


def test_answers_are_in_the_last_share_of_the_steps():
    recipe = make_phase2(steps=10, answer_share=0.2)
    assert [has_answers(recipe, step) for step in (0, 7, 8, 9)] == [False, False, True, True]
    silent = recipe.model_copy(update={"losses": recipe.losses.model_copy(update={"answer": 0.0})})
    assert not has_answers(silent, 9)


def test_a_curriculum_deepens_and_ends_at_the_model_s_own_depth():
    curriculum = (Depth(share=0.2, n_latent_steps=1, n_deep_recursions=1), Depth(share=0.3, n_latent_steps=9, n_deep_recursions=1))
    recipe = make_phase2(steps=10, curriculum=curriculum)
    depths = [(at.n_latent_steps, at.n_deep_recursions) for at in (recursion_at(recipe, RECURSION, step) for step in (0, 1, 2, 4, 5, 9))]
    assert depths == [(1, 1), (1, 1), (2, 1), (2, 1), (2, 2), (2, 2)]


def test_a_curriculum_s_depth_is_what_the_net_is_called_with():
    module, calls = make_module(make_phase2(curriculum=(Depth(share=0.5, n_latent_steps=1, n_deep_recursions=1),))), []
    module.trm.core.net.register_forward_hook(lambda *_: calls.append(1))
    for step in (0, 3):
        module.step_loss(step)
        calls.append(0)
    assert calls == [1] * 2 + [0] + [1] * 6 + [0]
    module.step_loss(0)
    module.finish()
    assert module.trm.core.config == RECURSION


def test_a_model_whose_phase_1_is_not_over_is_an_error():
    model, table = make_model(), make_table()
    latents = latents_of(model, table, live_states(model))
    model.thinker.trm.norm.fitted.fill_(False)
    with pytest.raises(ValueError, match="wanted fitted statistics"):
        Phase2Module(model, table, latents, make_phase2(), seed=0)


def test_targets_are_the_thought_s_latents_less_their_mean():
    module = make_module()
    post_NMd = latents_of(module.model, module.table, live_states(module.model)).post_NMd
    module.rows_B = torch.tensor([5, 0, 7])
    assert torch.allclose(module.trm.norm.unstandardise_post(module.targets()), post_NMd[[5, 0, 7]], atol=1e-4)


def test_the_twin_without_recursion_has_the_same_weights_and_passes_each_layer_once_a_step():
    model = make_model(states=HiddenStateConfig(32, 4, RECURSION))
    twin, table, calls = non_recursive_twin(model), make_table(), []
    assert all(torch.equal(each, twin.thinker.state_dict()[name]) for name, each in model.thinker.state_dict().items())
    assert twin.base is model.base
    module = Phase2Module(twin, table, latents_of(twin, table, live_states(twin)), make_phase2(), seed=0)
    for block in twin.thinker.trm.core.net.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    module.step_loss(0)
    assert len(calls) == 2
    assert module.carry.done_B.all()


def test_the_twin_s_training_leaves_the_model_as_it_is():
    model = make_model(states=HiddenStateConfig(32, 4, RECURSION))
    twin = non_recursive_twin(model)
    with torch.no_grad():
        twin.thinker.trm.slots_Md.zero_()
    assert model.thinker.trm.slots_Md.any()


def test_pauses_begin_as_the_mean_thought_and_are_all_that_is_trained():
    module = PauseModule(make_model(), make_table(), make_schedule(4), seed=0)
    assert torch.equal(module.pauses()[0], mean_thought(module.model))
    assert [name for name, each in module.named_parameters() if each.requires_grad] == ["pause_MD"]
    module.step_loss(0).loss.backward()
    gradient = module.get_parameter("pause_MD").grad
    assert gradient is not None
    assert gradient.any(dim=-1).all()


def test_phase_2b_trains_adapters_tags_and_projector_and_the_thoughts_stay_as_they_are():
    model = make_model(lora=LORA)
    adapter = Adapter(r=4, lora_alpha=8, target_modules=("q_proj", "v_proj"))
    module: PhaseModule = Phase2bModule(model, make_table(), Phase2b(training=make_schedule(4), adapter=adapter), seed=0)
    trained = [name for name, each in module.named_parameters() if each.requires_grad]
    assert trained
    assert all("lora_" in name or "trainable_tokens" in name or ".projector." in name for name in trained)
    module.step_loss(0).loss.backward()
    reached = {name for name in trained if (gradient := module.get_parameter(name).grad) is not None and gradient.any()}
    assert {name for name in trained if "lora_A" in name}.isdisjoint(reached), "B starts at zero: A has no gradient before B has moved"
    assert {name for name in trained if "lora_A" not in name} - reached == set()


def test_phase_2b_without_adapters_is_an_error():
    recipe: Any = Phase2b(training=make_schedule(4), adapter=Adapter(r=4, lora_alpha=8, target_modules=("q_proj",)))
    with pytest.raises(ValueError, match="wanted a model with adapters"):
        Phase2bModule(make_model(), make_table(), recipe, seed=0)
