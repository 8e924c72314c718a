"""Token counts: as many as the checkpoint's tokenizer gives, without loading transformers."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from trlm_core.text.token_counts import token_counter

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
