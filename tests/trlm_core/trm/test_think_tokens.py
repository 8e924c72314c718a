"""The tags of a thought are one token each, or an error that says what the tokenizer makes of them."""

import pytest
from transformers import PreTrainedTokenizerBase

from trlm_core.trm.sudoku_thoughts import sudoku_tokenizer
from trlm_core.trm.think_tokens import ThinkTokens, ThinkTokensError


def test_ids_are_those_of_the_tokenizer():
    assert ThinkTokens.of(sudoku_tokenizer()) == ThinkTokens(think=6, end_think=7, pad=9, eos=8)


def test_added_tags_have_the_ids_after_the_vocabulary_and_pad_may_be_eos(tiny_tokenizer: PreTrainedTokenizerBase):
    before = len(tiny_tokenizer)
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]}, replace_extra_special_tokens=False)
    assert ThinkTokens.of(tiny_tokenizer) == ThinkTokens(think=before, end_think=before + 1, pad=2, eos=2)


def test_a_tag_in_pieces_is_an_error_with_the_pieces(tiny_tokenizer: PreTrainedTokenizerBase):
    with pytest.raises(ThinkTokensError, match=r"wanted <think> as one token, got \['<', .*take a checkpoint of a stage that adds it"):
        ThinkTokens.of(tiny_tokenizer)


def test_a_tag_that_is_read_as_unknown_is_an_error():
    tokenizer = sudoku_tokenizer()
    with pytest.raises(ThinkTokensError, match=r"wanted <reason> as one token, got \['<unk>'\]"):
        ThinkTokens.of(_with_unknown(tokenizer), think="<reason>")


@pytest.mark.parametrize("name", ["pad_token", "eos_token"])
def test_a_tokenizer_without_pad_or_end_is_an_error_that_names_it(name: str):
    tokenizer = sudoku_tokenizer()
    setattr(tokenizer, name, None)
    with pytest.raises(ThinkTokensError, match=f"wanted a {name}, got None; set it before the thoughts are made"):
        ThinkTokens.of(tokenizer)


def _with_unknown(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({"<unk>": 0, **{word: number + 1 for word, number in tokenizer.get_vocab().items()}}, unk_token="<unk>")
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")
