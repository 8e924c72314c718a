"""Answers after thoughts: the TRM is called, batches change nothing, and greedy decoding is what the logits say."""

import pytest
import torch

from tests.trlm_core.trm.tiny_thinker import BOS, END, EOS, LORA, TOKENS, M, left, make_llama, make_model
from trlm_core.trm.hidden_states import plain
from trlm_core.trm.latent_generation import Decoding
from trlm_core.trm.latent_thought_model import LatentThoughtModel

THINK = TOKENS.think
PROMPTS = [[BOS, 5, 6, THINK], [BOS, 11, 4, 7, 8, 9, THINK], [BOS, THINK]]
GREEDY = Decoding(max_new_tokens=6)


def greedy_by_hand(model: LatentThoughtModel, prompt: list[int], steps: int) -> list[int]:
    encoded = model.encode_prompt(*left([prompt]))
    u_BMD, new = model.think(encoded, steps).u_BMD, []
    while len(new) < GREEDY.max_new_tokens and (not new or new[-1] not in (EOS, THINK)):
        new.append(int(model.answer_logits(encoded, u_BMD, torch.tensor([[*new, EOS]]))[0, -1].argmax()))
    return new


@torch.no_grad()
def test_latent_answers_are_the_greedy_ones_of_the_logits_row_by_row_and_in_a_batch():
    model = make_model()
    rows = model.generate(*left(PROMPTS), GREEDY, "latent", thought_steps=3)
    for row, prompt in zip(rows, PROMPTS, strict=True):
        by_hand = greedy_by_hand(model, prompt, steps=3)
        assert row.prompt == prompt
        assert row.new[: 1 + len(by_hand)] == [END, *by_hand]
        assert row.thoughts[0].steps == 3


def test_a_thought_is_had_even_where_the_prompt_does_not_ask_for_it():
    model = make_model()
    (row,) = model.generate(*left([PROMPTS[0][:-1]]), GREEDY, "latent")
    assert row.prompt == PROMPTS[0]
    assert model.trm_calls >= 1


def test_zeroed_thoughts_and_other_step_counts_change_what_is_answered():
    model = make_model()
    many = [[BOS, a, b, THINK] for a in range(4, 12) for b in range(4, 12)]
    thought = [row.new for row in model.generate(*left(many), GREEDY, "latent")]
    deeper = [row.new for row in model.generate(*left(many), GREEDY, "latent", thought_steps=6)]
    with torch.no_grad():
        model.thinker.projector.scale.zero_()
    zeroed = [row.new for row in model.generate(*left(many), GREEDY, "latent")]
    assert thought != zeroed
    assert thought != deeper


@torch.no_grad()
def test_text_is_what_the_language_model_writes_by_itself_and_off_is_an_empty_thought():
    model = make_model()
    text = model.generate(*left(PROMPTS), GREEDY, "text")
    off = model.generate(*left(PROMPTS), GREEDY, "off")
    for prompt, written, answered in zip(PROMPTS, text, off, strict=True):
        lm = plain(model.base)
        own = lm.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, len(prompt) :].tolist()  # type: ignore[operator]
        after = lm.generate(torch.tensor([[*prompt, END]]), max_new_tokens=6, do_sample=False)[0, len(prompt) + 1 :].tolist()  # type: ignore[operator]
        assert written.new == own
        assert answered.new == [END, *after]
    assert model.trm_calls == 0


def test_a_model_that_writes_think_thinks_again_and_goes_on_within_its_budget():
    base = make_llama()
    model = make_model(base)
    rows, seen = [], 0
    for seed in range(2):  # an untrained model writes <think> now and then
        torch.manual_seed(seed)
        prompts = left([[BOS, a, THINK] for a in range(4, 24)])
        rows += model.generate(*prompts, Decoding(12, do_sample=True, temperature=2.0), "latent", thought_steps=1)
    for row in rows:
        seen += len(row.thoughts) > 1
        assert len(row.new) - len(row.thoughts) <= 12
        assert row.new[0] == END
        inner = [i for i, token in enumerate(row.new[:-1]) if token == THINK][: len(row.thoughts) - 1]
        assert all(row.new[i + 1] == END for i in inner)
    assert seen > 0


def test_halting_rows_use_their_own_steps():
    model = make_model()
    with torch.no_grad():
        model.thinker.trm.core.halt_head.bias.fill_(5.0)
    (row,) = model.generate(*left([PROMPTS[0]]), GREEDY, "latent", thought_steps=6, halting=True)
    assert row.thoughts[0].steps == 1
    assert row.thoughts[0].p_halt_S == pytest.approx([torch.sigmoid(torch.tensor(5.0)).item()], abs=1e-4)


def test_a_prompt_with_no_room_for_thought_and_answer_is_refused_before_anything_is_written():
    model = make_model(make_llama(max_positions=12))
    with pytest.raises(ValueError, match=f"context: wanted at most 12 positions .*got 4 of the prompt \\+ {M} latents \\+ 7 after them"):
        model.generate(*left([PROMPTS[0]]), GREEDY, "latent")


def test_with_adapters_a_batch_still_answers_as_one_by_one():
    model = make_model(make_llama(), lora=LORA)
    with torch.no_grad():
        for name, weight in model.base.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                weight.add_(0.1 * torch.randn_like(weight))
        together = model.generate(*left(PROMPTS), GREEDY, "latent")
        assert [row.new for row in together] == [model.generate(*left([prompt]), GREEDY, "latent")[0].new for prompt in PROMPTS]
