"""Token counts: as many as the checkpoint's tokenizer gives, without loading transformers."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from trlm_core.text.token_counts import cuts_at_spaces, token_counter

ODD = " \t\n\r\u00a0\u2003\x1c\x85\u200b  '\u2019sStdm5\u00bd\u00b2\u0663\u4e2da9.,!<|>\u00e9\u0301\U0001f600_-"
TEXTS = ["What is 4 + 3 - 2?", "", "the tree", "Größe 😀\n", "<|im_start|>user\n", "word " * 600]
WITHOUT_TRANSFORMERS = """
import sys
from pathlib import Path
from trlm_core.text.token_counts import token_counter
print(token_counter(Path(sys.argv[1]))(["4 + 3", ""]), {"torch", "transformers"} & set(sys.modules))
"""


def test_a_text_has_as_many_tokens_as_the_tokenizer_gives_it(tiny_base: Path, tiny_tokenizer: PreTrainedTokenizerBase):
    assert token_counter(tiny_base)(TEXTS) == [len(tiny_tokenizer.encode(text, add_special_tokens=False)) for text in TEXTS]


def test_digits_are_tokens_of_their_own_and_no_text_has_none(tiny_base: Path):
    assert token_counter(tiny_base)(["7", "77", "777", ""]) == [1, 2, 3, 0]
    assert token_counter(tiny_base)([]) == []


def test_many_texts_are_counted_in_their_order(tiny_base: Path):
    assert token_counter(tiny_base)(["7" * length for length in range(300)]) == list(range(300))


def test_tokens_that_the_tokenizer_puts_around_a_text_are_not_counted(tiny_base: Path, tmp_path: Path):
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(tiny_base / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert token_counter(tmp_path)(["7", "77"]) == [1, 2]


def test_a_tokenizer_that_cuts_and_pads_is_counted_in_full(tiny_base: Path, tmp_path: Path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_base / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert token_counter(tmp_path)(["7", "7" * 300]) == [1, 300]


def test_counting_loads_neither_torch_nor_transformers(tiny_base: Path):
    told = subprocess.run([sys.executable, "-c", WITHOUT_TRANSFORMERS, str(tiny_base)], capture_output=True, text=True, check=True).stdout
    assert told.strip().endswith("set()")


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"wanted a tokenizer.json, got none") as refused:
        token_counter(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_counting_by_words_is_exact_whatever_stands_around_the_spaces(tiny_base: Path, tiny_tokenizer: PreTrainedTokenizerBase):
    draw = random.Random(0)
    parts = [*ODD, "<|im_start|>", "'ll", "  ", " \n"]
    texts = ["".join(draw.choices(parts, k=draw.randrange(30))) for _ in range(20_000)]
    assert token_counter(tiny_base)(texts) == [len(ids) for ids in tiny_tokenizer(texts, add_special_tokens=False)["input_ids"]]


def test_words_are_forgotten_before_they_fill_the_memory(tiny_base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trlm_core.text.token_counts.MOST_BYTES", 1_000)
    texts = [" ".join(str(number) for number in range(start, start + 9)) for start in range(0, 900, 3)]
    assert token_counter(tiny_base)(texts) == [len(text) for text in texts]


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
        {"added_tokens": [{"content": "a b", "lstrip": False, "rstrip": False, "single_word": False}]},
        {"added_tokens": [{"content": "<x>", "lstrip": True, "rstrip": False, "single_word": False}]},
    ],
)
def test_a_tokenizer_whose_tokens_may_cross_a_space_is_not_counted_by_words(tiny_base: Path, change: dict[str, Any]):
    known = json.loads((tiny_base / "tokenizer.json").read_text())
    assert cuts_at_spaces(known)
    assert not cuts_at_spaces({**known, **change})
