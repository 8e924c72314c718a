"""Templates and labels, token by token: what a model is trained on begins with what it is asked with."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from trlm_core.recipes.schema import Rendering
from trlm_core.text.templates import chat_template
from trlm_core.text.tokenizer import conversation_ids, prompt_ids, stage_tokenizer

SYSTEM = "You think."
ONE_TURN = [{"role": "user", "content": "4 + 3?"}, {"role": "assistant", "content": "7"}]
MULTI_TURN = [*ONE_TURN, {"role": "user", "content": "7 - 2?"}, {"role": "assistant", "content": "5"}]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *MULTI_TURN]
WITH_THOUGHT = [{"role": "user", "content": "4 + 3?"}, {"role": "assistant", "content": "<think>\n4 + 3 = 7.\n</think>\n7"}]
CONVERSATIONS = {"one turn": ONE_TURN, "multi-turn": MULTI_TURN, "system": WITH_SYSTEM, "thought": WITH_THOUGHT}


def rendering(**changes: Any) -> Rendering:
    fields = {
        "template": "clean",
        "system_prompt": None,
        "loss_on": "assistant",
        "max_length": 512,
        "max_prompt_length": None,
        "new_tokens": None,
    }
    return Rendering(**{**fields, **changes})


@pytest.fixture
def thinking(tiny_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return stage_tokenizer(tiny_tokenizer, ["<think>", "</think>"], rendering())


@pytest.mark.parametrize("system_prompt", [None, SYSTEM])
@pytest.mark.parametrize("name", list(CONVERSATIONS))
def test_the_clean_template_s_prompt_begins_its_training_text_token_by_token(
    name: str, system_prompt: str | None, tiny_tokenizer: PreTrainedTokenizerBase
):
    tokenizer = stage_tokenizer(tiny_tokenizer, ["<think>", "</think>"], rendering(system_prompt=system_prompt))
    messages = CONVERSATIONS[name]
    text = conversation_ids(tokenizer, messages)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = prompt_ids(tokenizer, messages[:turn])
            assert text[: len(prompt)] == prompt


@pytest.mark.parametrize("system_prompt", [None, SYSTEM])
@pytest.mark.parametrize("name", list(CONVERSATIONS))
def test_the_reference_template_s_prompt_does_not_begin_its_training_text(
    name: str, system_prompt: str | None, tiny_tokenizer: PreTrainedTokenizerBase
):
    tokenizer = stage_tokenizer(tiny_tokenizer, [], rendering(template="reference", system_prompt=system_prompt))
    messages = CONVERSATIONS[name]
    prompt = prompt_ids(tokenizer, messages[:-1])
    assert conversation_ids(tokenizer, messages)[: len(prompt)] != prompt


def test_the_clean_template_writes_smollm2_s_form(thinking: PreTrainedTokenizerBase):
    assert thinking.decode(conversation_ids(thinking, WITH_SYSTEM)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n4 + 3?<|im_end|>\n<|im_start|>assistant\n7<|im_end|>\n"
        "<|im_start|>user\n7 - 2?<|im_end|>\n<|im_start|>assistant\n5<|im_end|>\n"
    )
    assert thinking.decode(prompt_ids(thinking, ONE_TURN[:1])) == "<|im_start|>user\n4 + 3?<|im_end|>\n<|im_start|>assistant\n"


def test_the_reference_template_keeps_the_indentation_of_the_report_s_code(tiny_tokenizer: PreTrainedTokenizerBase):
    tokenizer = stage_tokenizer(tiny_tokenizer, [], rendering(template="reference", system_prompt=SYSTEM))
    text = tokenizer.decode(conversation_ids(tokenizer, ONE_TURN))
    assert "  <|im_start|>user\n4 + 3?<|im_end|>\n\n" in text
    assert str(tokenizer.decode(prompt_ids(tokenizer, ONE_TURN[:1]))).endswith("    <|im_start|>assistant\n\n")


@pytest.mark.parametrize("template", ["clean", "reference"])
def test_the_default_system_turn_comes_once_and_gives_way_to_the_conversation_s_own(template: str, tiny_tokenizer: PreTrainedTokenizerBase):
    tokenizer = stage_tokenizer(tiny_tokenizer, [], rendering(template=template, system_prompt=SYSTEM))
    default = str(tokenizer.decode(conversation_ids(tokenizer, MULTI_TURN)))
    own = tokenizer.decode(conversation_ids(tokenizer, WITH_SYSTEM))
    assert default.lstrip().startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n")
    assert (default.count("system\n"), own.count("system\n"), own.count(SYSTEM)) == (1, 1, 0)


def test_without_a_system_prompt_the_clean_template_has_no_system_turn(thinking: PreTrainedTokenizerBase):
    assert "system" not in thinking.decode(conversation_ids(thinking, ONE_TURN))


def test_a_system_prompt_of_quotes_and_braces_is_written_as_it_is(tiny_tokenizer: PreTrainedTokenizerBase):
    prompt = 'Say "{{ x }}", {% not %} \\n é\nnever.'
    tokenizer = stage_tokenizer(tiny_tokenizer, [], rendering(system_prompt=prompt))
    assert f"<|im_start|>system\n{prompt}<|im_end|>" in tokenizer.decode(conversation_ids(tokenizer, ONE_TURN))


def test_a_saved_tokenizer_carries_its_template_and_its_new_tokens(thinking: PreTrainedTokenizerBase, tmp_path):
    thinking.save_pretrained(tmp_path)
    again = type(thinking).from_pretrained(tmp_path)
    assert conversation_ids(again, WITH_THOUGHT) == conversation_ids(thinking, WITH_THOUGHT)
    assert again.chat_template == chat_template(rendering())


def test_think_tokens_are_single_tokens_after_all_the_others(thinking: PreTrainedTokenizerBase, tiny_base):
    before = len(type(thinking).from_pretrained(tiny_base))
    assert thinking.encode("<think>", add_special_tokens=False) == [before]
    assert thinking.encode("</think>", add_special_tokens=False) == [before + 1]
    assert len(thinking) == before + 2
    ids = conversation_ids(thinking, WITH_THOUGHT)
    assert (ids.count(before), ids.count(before + 1)) == (1, 1)


def test_adding_tokens_keeps_the_special_tokens_that_were_there(thinking: PreTrainedTokenizerBase):
    assert thinking.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (thinking.eos_token_id, thinking.pad_token_id) == (2, 2)
    again = stage_tokenizer(thinking, ["<think>", "</think>"], rendering())
    assert len(again) == len(thinking)


def test_every_digit_is_a_token_of_its_own(tiny_tokenizer: PreTrainedTokenizerBase):
    assert tiny_tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
