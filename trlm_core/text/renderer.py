"""A renderer: conversations to token ids and labels, many at once, each tokenised once, by the `tokenizers` library alone.

4 + 3? 7 -> input_ids [1, 4093, ..., 1, 520, 9531, 198, 39, 2, 198], labels [-100, ..., 39, 2, -100]
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import numpy as np

from trlm_core.recipes.schema import Rendering
from trlm_core.text.templates import chat_template
from trlm_core.text.tokenizer import IGNORED, Message

if TYPE_CHECKING:
    from tokenizers import Encoding

CONFIG = "tokenizer_config.json"


class Reply(str):
    """A piece of a template's text that it marks as generated."""

    __slots__ = ()


class Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` yields a Reply; transformers' own tag joins all text before each reply to find its place."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_reply"), [], [], body).set_lineno(line)

    def _reply(self, caller: Any) -> Reply:
        return Reply(caller())


@dataclass(frozen=True)
class Text:
    whole: str
    replies: tuple[tuple[int, int], ...]  # the characters of each, from and up to


@dataclass(frozen=True)
class Rendered:
    """A conversation's text and what it was tokenised to."""

    text: Text
    encoding: "Encoding"

    @functools.cached_property
    def ids(self) -> np.ndarray:
        return np.array(self.encoding.ids, np.int32)

    @functools.cached_property
    def reply_labels(self) -> np.ndarray:
        """The ids of the replies and of their end-of-turn tokens, not shifted; IGNORED elsewhere."""
        labels = np.full(len(self.ids), IGNORED, np.int32)
        for start, end in self.text.replies:
            first, last = self.token_at(start), self.token_at(end - 1)
            labels[first : last + 1] = self.ids[first : last + 1]
        return labels

    def token_at(self, character: int) -> int:
        token = self.encoding.char_to_token(character)
        assert token is not None, "a byte-level tokenizer leaves no character out"
        return token


class Renderer:
    """Thread-safe. Raises ValueError for a tokenizer whose end-of-turn token takes from the text beside it."""

    def __init__(self, folder: Path, rendering: Rendering) -> None:
        from tokenizers import Tokenizer

        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self._end = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["eos_token"]
        _check_parts(json.loads(text), self._end, folder)
        self._tokenizer = Tokenizer.from_str(text)
        self.end_of_turn: int = self._tokenizer.encode(self._end, add_special_tokens=False).ids[0]
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation])
        self._template = environment.from_string(chat_template(rendering))

    def conversations(self, many: Sequence[list[Message]]) -> list[Rendered]:
        texts = [self.text(messages) for messages in many]
        return [Rendered(*each) for each in zip(texts, self._encoded([text.whole for text in texts]), strict=True)]

    def text(self, messages: list[Message], *, prompt: bool = False) -> Text:
        """`prompt`: with the generation prompt at its end."""
        pieces = list(self._template.generate(messages=messages, add_generation_prompt=prompt))
        replies, place = [], 0
        for piece in pieces:
            replies += [(place, place + len(piece))] if isinstance(piece, Reply) else []
            place += len(piece)
        return Text("".join(pieces), tuple(replies))

    def beside(self, known: Sequence[Rendered], texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of texts that begin like others that are rendered: only what follows their last common end of turn is tokenised."""
        cuts = [_after_last(self._end, text, _common_prefix(of.text.whole, text)) for of, text in zip(known, texts, strict=True)]
        rests = self._encoded([text[cut:] for text, cut in zip(texts, cuts, strict=True)])
        shared = [of.ids[: of.token_at(cut - 1) + 1 if cut else 0] for of, cut in zip(known, cuts, strict=True)]
        return [np.concatenate([ids, np.array(rest.ids, np.int32)]) for ids, rest in zip(shared, rests, strict=True)]

    def _encoded(self, texts: Sequence[str]) -> "list[Encoding]":
        return self._tokenizer.encode_batch([*texts], add_special_tokens=False)  # lets other threads run, unlike encode


def _check_parts(tokenizer: dict[str, Any], end: str, folder: Path) -> None:
    """Tokens before an end of turn must not hang on what follows it, nor the other way round."""
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    greedy = [name for name in ("lstrip", "rstrip", "single_word", "normalized") if added.get(end, {name: True})[name]]
    if greedy or tokenizer.get("normalizer") is not None:
        wanted = f"no normalizer and {end!r} as an added token that takes nothing from the text beside it"
        raise ValueError(f"{folder}: wanted {wanted}, got {', '.join(greedy) or 'a normalizer'}; take another base")


def _after_last(mark: str, text: str, end: int) -> int:
    """The place after the last mark before `end`; 0 where there is none."""
    found = text.rfind(mark, 0, end)
    return found + len(mark) if found >= 0 else 0


def _common_prefix(left: str, right: str) -> int:
    """By halves: comparing slices is faster than comparing characters."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle - 1)
    return low
