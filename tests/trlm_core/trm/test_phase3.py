"""Phase 3: what it trains, that one thought serves its group, that the language model keeps its bytes, and that rewards rise."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trlm_core.trm.tiny_phases import make_phase3, make_rows, make_run, make_table
from tests.trlm_core.trm.tiny_thinker import EOS, TOKENS, make_llama, make_model
from trlm_core.recipes.trm_schema import Phase3, Rewards
from trlm_core.trm.grpo import Rollout
from trlm_core.trm.phase3 import Phase3Module, language_model_sha256
from trlm_core.trm.phase_rows import RowTable
from trlm_core.trm.phase_trainer import run_phase
from trlm_core.trm.rewards import group_rewards, is_as_long, is_number, reward_of
from trlm_core.trm.sudoku_thoughts import sudoku_tokenizer
from trlm_core.trm.thought_data import ThoughtRow

REWARDS = Rewards(exact=1.0, well_formed=0.1, partial=0.0)
ROW = ThoughtRow((1, 5, 2), (6,), (7, 8, EOS))


def make_module(recipe: Phase3 | None = None) -> Phase3Module:
    return Phase3Module(make_model(), make_table(), is_as_long, recipe or make_phase3(), max_new_tokens=4, seed=0)


def test_compressor_recursion_and_projector_are_trained_and_nothing_else():
    module = make_module()
    trained = {".".join(name.split(".")[2:4]) for name, each in module.named_parameters() if each.requires_grad}
    assert trained == {"trm.compressor", "trm.slots_Md", "trm.core", "trm.head", "projector.linear", "projector.scale"}
    assert not any(each.requires_grad for each in module.model.base.parameters())
    assert not any(each.requires_grad for each in module.reference.parameters())


def test_every_trained_parameter_has_a_gradient_through_the_answers_probabilities():
    module = make_module()
    torch.manual_seed(0)
    made = module.step_loss(0)
    assert "loss_policy" in made.metrics, "the test needs groups whose rewards differ"
    made.loss.backward()
    assert [name for name, weight in module.trained.items() if weight.grad is None or not weight.grad.any()] == []
    assert all(each.grad is None for each in module.model.base.parameters())


def test_one_thought_serves_a_group_s_answers_which_differ():
    module, calls = make_module(), []
    module.model.thinker.trm.core.net.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    batch = module.table.batch([0, 1, 2, 3])
    prompt = module.model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
    u_PMD = module.model.thinker.embed_thought(module._think(module.model.thinker, prompt).v_BMd)
    thoughts = len(calls)
    answers = module._group_answers(prompt, u_PMD.detach())
    assert (len(answers), len(calls)) == (4 * 4, thoughts)
    assert len(set(answers[:4])) > 1


def test_probabilities_are_those_that_the_answers_were_drawn_with():
    module = make_module(make_phase3().model_copy(update={"temperature": 0.7}))
    torch.manual_seed(0)
    batch = module.table.batch([0, 1])
    prompt = module.model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
    u_PMD = module.model.thinker.embed_thought(module._think(module.model.thinker, prompt).v_BMd).detach()
    answers = module._group_answers(prompt, u_PMD)
    told = module._telling(prompt, answers, torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    assert told is not None
    logp_BA, _ = module._log_probabilities(told, u_PMD)
    alone = module.model.encode_prompt(batch.prompt_ids_BL[:1], batch.prompt_mask_BL[:1])
    for b, answer in enumerate(answers[:4]):
        logits_AV = module.model.answer_logits(alone, u_PMD[:1], torch.tensor([answer]))[0]
        by_hand = (logits_AV / 0.7).log_softmax(dim=-1)[range(len(answer)), list(answer)]
        assert torch.allclose(logp_BA[b, : len(answer)], by_hand, atol=1e-4)
    assert len(logp_BA) == 4, "the second group is of one mind, and is dropped"
    assert told.whole == Rollout(8, sum(len(answer) for answer in answers)), "and counts in what the loss is divided by"


def test_groups_of_one_mind_give_no_gradient_but_the_halting_head_s():
    module = make_module(make_phase3().model_copy(update={"rewards": Rewards(exact=0.0, well_formed=0.0, partial=0.0)}))
    with torch.no_grad():
        module.model.thinker.trm.core.halt_head.weight.normal_()  # a head of zeros would hand no gradient on, wherever it led
    made = module.step_loss(0)
    made.loss.backward()
    assert made.metrics["zero_variance_share"] == 1.0
    reached = {name for name, weight in module.trained.items() if weight.grad is not None and weight.grad.any()}
    assert reached == {"model.thinker.trm.core.halt_head.weight", "model.thinker.trm.core.halt_head.bias"}


def test_the_divergence_from_the_reference_is_nothing_at_first_and_grows_with_the_weights():
    module = make_module()
    torch.manual_seed(0)
    assert module.step_loss(0).metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        module.model.thinker.projector.linear.weight.mul_(-1.0)
    torch.manual_seed(0)
    assert module.step_loss(0).metrics["kl"] > 1e-3


def test_the_reference_is_not_what_is_trained():
    module = make_module()
    before = copy.deepcopy(module.reference.state_dict())
    with torch.no_grad():
        module.model.thinker.trm.slots_Md.zero_()
    assert all(torch.equal(each, module.reference.state_dict()[name]) for name, each in before.items())


def test_a_language_model_of_other_bytes_is_an_error_at_the_end():
    module = make_module()
    module.check_language_model()
    with torch.no_grad():
        next(module.model.base.parameters()).flatten()[0] += 1e-3
    with pytest.raises(RuntimeError, match="language model: wanted the bytes"):
        module.finish()


def test_the_digest_is_of_every_byte_in_any_dtype():
    first, second = make_llama(), make_llama()
    assert language_model_sha256(first) == language_model_sha256(second)
    with torch.no_grad():
        second.model.norm.weight[-1] += 1e-6
    assert language_model_sha256(first) != language_model_sha256(second)
    assert len(language_model_sha256(make_llama(dtype=torch.bfloat16))) == 64


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ((7, 8, EOS), 1.1),
        ((7, 9, EOS), 0.1),
        ((7, EOS), 0.0),  # too short for the form
        ((7, 8, 9, 9), 0.0),  # no end
        ((), 0.0),
    ],
)
def test_a_reward_is_for_the_right_answer_and_a_little_for_its_form(answer: tuple[int, ...], reward: float):
    assert reward_of(REWARDS, answer, ROW, is_as_long) == pytest.approx(reward)


def test_a_partial_reward_is_for_tokens_in_their_place():
    partial = Rewards(exact=0.0, well_formed=0.0, partial=1.0)
    assert reward_of(partial, (7, 9, EOS), ROW, is_as_long) == pytest.approx(2 / 3)
    assert reward_of(partial, (8, 7), ROW, is_as_long) == 0.0


def test_group_rewards_are_a_prompt_s_after_another_s():
    rows = make_rows(2)
    answers = [rows[0].answer, (9, EOS), rows[0].answer, rows[1].answer]
    assert group_rewards(REWARDS, answers, rows, is_as_long).tolist() == [
        [pytest.approx(1.1), 0.0],
        [pytest.approx(0.1), pytest.approx(1.1)],
    ]


def test_a_number_and_nothing_else_is_well_formed_where_answers_are_numbers():
    tokenizer = sudoku_tokenizer()
    one, two, think = (tokenizer.get_vocab()[text] for text in ("1", "2", "<think>"))
    assert is_number(tokenizer)((one, two), ROW)
    assert not is_number(tokenizer)((), ROW)
    assert not is_number(tokenizer)((one, think), ROW)


def test_training_raises_the_rewards(tmp_path: Path):
    table = RowTable.of([replace(row, answer=(15, EOS)) for row in make_rows(24)], TOKENS)  # what it says now and then, it is to say always
    module = Phase3Module(make_model(), table, is_as_long, make_phase3(steps=40), max_new_tokens=1, seed=0)
    history = run_phase(module, make_run(tmp_path))
    rewards = [line["reward_mean"] for line in history]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.08  # of 0.25, the reward for that one token
    module.finish()
