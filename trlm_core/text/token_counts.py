"""How many tokens texts have, by a checkpoint's tokenizer.json; without transformers, and each word encoded once where that is exact."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 64  # texts whose encodings are held at once
WORDS = 4_096  # likewise
WORD_BYTES = 100  # that a known word takes beside its letters
MOST_BYTES = 32 << 20  # of known words
TokenCounter = Callable[[Sequence[str]], list[int]]

SPACE_IN_A_RUN = re.compile(r"\s ")
FIRST_SPACE = re.compile(r"(?<=\S) ")


def token_counter(folder: Path) -> TokenCounter:
    """Counts without special tokens. Raises FileNotFoundError where the folder has no tokenizer.json."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: wanted a tokenizer.json, got none")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _ByWords(tokenizer) if cuts_at_spaces(json.loads(path.read_text())) else lambda texts: _encoded(tokenizer, texts, BATCH)


def cuts_at_spaces(tokenizer: dict[str, Any]) -> bool:
    """Whether no token crosses the place before a space that follows something else: then the words' counts add up to the text's.

    GPT-2's pattern (ByteLevel, use_regex) has no alternative that goes on over such a place; splitting digits off changes nothing there.
    """
    first, last = _pre_tokenizers(tokenizer)
    digits = all(each["type"] == "Digits" for each in first)
    gpt2 = last.get("type") == "ByteLevel" and last.get("use_regex", True) and not last.get("add_prefix_space", True)
    return digits and gpt2 and tokenizer.get("normalizer") is None and not any(map(_looks_around, tokenizer.get("added_tokens", ())))


def _pre_tokenizers(tokenizer: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All but the last, and the last."""
    whole = tokenizer.get("pre_tokenizer") or {}
    parts = whole.get("pretokenizers", []) if whole.get("type") == "Sequence" else [whole]
    return parts[:-1], parts[-1] if parts else {}


def _looks_around(added: dict[str, Any]) -> bool:
    """Whether an added token can hold or take a space."""
    return " " in added["content"] or added["lstrip"] or added["rstrip"] or added["single_word"]


class _ByWords:
    """A text's count is the sum of its words', which are encoded when they are first seen."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, int] = {}  # word -> tokens of it with a space before it
        self._bytes = 0

    def __call__(self, texts: Sequence[str]) -> list[int]:
        return [count for start in range(0, len(texts), BATCH) for count in self._counts(texts[start : start + BATCH])]

    def _counts(self, texts: Sequence[str]) -> list[int]:
        cut = [_words(text) for text in texts]
        self._learn(set().union(*(words[1:] for words in cut)))
        firsts = _encoded(self._tokenizer, [words[0] for words in cut], BATCH)
        return [first + sum(map(self._known.__getitem__, words[1:])) for first, words in zip(firsts, cut, strict=True)]

    def _learn(self, words: Iterable[str]) -> None:
        if self._bytes > MOST_BYTES:
            self._known, self._bytes = {}, 0
        new = [word for word in words if word not in self._known]
        self._known.update(zip(new, _encoded(self._tokenizer, [f" {word}" for word in new], WORDS), strict=True))
        self._bytes += sum(map(len, new)) + WORD_BYTES * len(new)


def _words(text: str) -> list[str]:
    """What stands between the spaces that follow something else; the first word, and the others without their space."""
    return FIRST_SPACE.split(text) if SPACE_IN_A_RUN.search(text) else text.split(" ")


def _encoded(tokenizer: "Tokenizer", texts: Sequence[str], at_once: int) -> list[int]:
    parts = (texts[start : start + at_once] for start in range(0, len(texts), at_once))
    return [len(each.ids) for part in parts for each in tokenizer.encode_batch_fast(list(part), add_special_tokens=False)]
