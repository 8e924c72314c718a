"""Ids and labels of every template, token by token, and that they are the library's own, however little is tokenised."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from trlm_core.recipes.schema import Rendering
from trlm_core.text.renderer import CONFIG, Rendered, Renderer
from trlm_core.text.tokenizer import IGNORED, conversation_ids, load_tokenizer, prompt_ids, stage_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
ONE_TURN = [{"role": "user", "content": "4 + 3?"}, {"role": "assistant", "content": "7"}]
MULTI_TURN = [*ONE_TURN, {"role": "user", "content": "7 - 2?"}, {"role": "assistant", "content": "5"}]
WITH_THOUGHT = [{"role": "user", "content": "4 + 3?"}, {"role": "assistant", "content": "<think>\n4 + 3 = 7.\n</think>\n7"}]
ODD = [
    "",
    " ",
    "\n",
    "\n\n7",
    "\t7",
    "\r\n",
    "caf\u00e9 \u6f22\u5b57",
    "\U0001f600 7",
    "<|im_end|>",
    "<<|im_start|>user\n7",
    "<think>",
    "12345",
    "\u00a07",
]
START, END, BREAK = "<|im_start|>", "<|im_end|>", "\n"
Pieces = list[tuple[str, bool]]


@pytest.fixture
def rendered(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Callable[..., tuple[PreTrainedTokenizerBase, Renderer]]:
    """`rendered("clean", "Be brief.")`: the tokenizer with a stage's template and thought tokens, and its renderer.

    joins_breaks: two line breaks are one token, as for SmolLM2.
    """

    def make(
        template: str = "clean", system_prompt: str | None = None, *, joins_breaks: bool = False
    ) -> tuple[PreTrainedTokenizerBase, Renderer]:
        fields: dict[str, Any] = {"template": template, "system_prompt": system_prompt, "loss_on": "assistant", "max_length": 512}
        rendering = Rendering(**fields, max_prompt_length=None, new_tokens=None)
        stage_tokenizer(tiny_tokenizer, ["<think>", "</think>"], rendering).save_pretrained(tmp_path)
        if joins_breaks:
            _join_breaks(tmp_path / "tokenizer.json")
        return load_tokenizer(tmp_path), Renderer(tmp_path, rendering)

    return make


def _join_breaks(path: Path) -> None:
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["ĊĊ"] = 478
    tokenizer["model"]["merges"].append(["Ċ", "Ċ"])
    path.write_text(json.dumps(tokenizer))


def spoken(role: str, *text: str) -> Pieces:
    """A turn of the clean template, token by token: the reply and its end of turn are labelled."""
    labelled = role == "assistant"
    return [(START, False), (role, False), (BREAK, False), *((token, labelled) for token in (*text, END)), (BREAK, False)]


@pytest.mark.parametrize(
    ("messages", "system_prompt", "told"),
    [
        (ONE_TURN, None, [spoken("user", "4", " +", " ", "3", "?"), spoken("assistant", "7")]),
        (
            MULTI_TURN,
            None,
            [
                spoken("user", "4", " +", " ", "3", "?"),
                spoken("assistant", "7"),
                spoken("user", "7", " -", " ", "2", "?"),
                spoken("assistant", "5"),
            ],
        ),
        (
            [{"role": "system", "content": "4"}, *ONE_TURN],
            "9",
            [
                spoken("system", "4"),
                spoken("user", "4", " +", " ", "3", "?"),
                spoken("assistant", "7"),
            ],
        ),
        (
            ONE_TURN,
            "9",
            [
                spoken("system", "9"),
                spoken("user", "4", " +", " ", "3", "?"),
                spoken("assistant", "7"),
            ],
        ),
        (
            WITH_THOUGHT,
            None,
            [
                spoken("user", "4", " +", " ", "3", "?"),
                spoken("assistant", *("<think>", "\n", "4", " +", " ", "3", " =", " ", "7", ".", "\n", "</think>", "\n", "7")),
            ],
        ),
    ],
    ids=["one turn", "multi-turn", "own system turn", "default system turn", "thought"],
)
def test_the_clean_template_s_tokens_and_labels(
    messages: list[dict[str, str]], system_prompt: str | None, told: list[Pieces], rendered: Callable
):
    tokenizer, renderer = rendered(system_prompt=system_prompt)
    (row,) = renderer.conversations([messages])
    assert _tokens(tokenizer, row) == [token for turn in told for token in turn]


def test_the_reference_template_s_tokens_are_indented_and_it_marks_no_reply(rendered: Callable):
    tokenizer, renderer = rendered("reference", "9")
    (row,) = renderer.conversations([ONE_TURN])
    assert [str(tokenizer.decode([token])) for token in row.ids] == [
        *(" ", " ", " ", " ", " ", " ", START, "system", "\n", "9", END, "\n", "\n"),
        *(" ", " ", START, "user", "\n", "4", " +", " ", "3", "?", END, "\n", "\n"),
        *(" ", " ", START, "assistant", "\n", "7", END, "\n", "\n"),
    ]
    assert (row.reply_labels == IGNORED).all()


@pytest.mark.parametrize("system_prompt", [None, "You think."])
@pytest.mark.parametrize("template", ["clean", "reference"])
def test_ids_and_prompts_are_those_that_the_library_s_template_gives(template: str, system_prompt: str | None, rendered: Callable):
    """Of odd texts too: characters of several tokens, blanks that join a template's own, a template's marks inside a turn."""
    tokenizer, renderer = rendered(template, system_prompt, joins_breaks=True)
    many = [[*first, {"role": "user", "content": asked}, {"role": "assistant", "content": said}] for first, asked, said in _odd()]
    rows = renderer.conversations(many)
    prompts = renderer.beside(rows, [renderer.text(messages[:-1], prompt=True).whole for messages in many])
    for messages, row, prompt in zip(many, rows, prompts, strict=True):
        assert row.ids.tolist() == conversation_ids(tokenizer, messages)
        assert prompt.tolist() == prompt_ids(tokenizer, messages[:-1])


def test_labels_are_those_that_the_library_s_mask_gives(rendered: Callable):
    tokenizer, renderer = rendered(joins_breaks=True)
    many = [[*first, {"role": "user", "content": asked}, {"role": "assistant", "content": said}] for first, asked, said in _odd()]
    for messages, row in zip(many, renderer.conversations(many), strict=True):
        out: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        assert row.reply_labels.tolist() == [
            token if kept else IGNORED for token, kept in zip(out["input_ids"], out["assistant_masks"], strict=True)
        ]


def test_what_begins_alike_is_tokenised_once_and_comes_to_the_same(rendered: Callable):
    tokenizer, renderer = rendered(joins_breaks=True)
    rows = renderer.conversations([MULTI_TURN] * len(ODD))
    others = [[*MULTI_TURN[:-1], {"role": "assistant", "content": said}] for said in ODD]
    found = renderer.beside(rows, [renderer.text(messages).whole for messages in others])
    assert [ids.tolist() for ids in found] == [conversation_ids(tokenizer, messages) for messages in others]


def test_a_tokenizer_whose_end_of_turn_takes_blanks_from_the_next_turn_is_refused(rendered: Callable, tmp_path: Path):
    rendered()
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    next(each for each in tokenizer["added_tokens"] if each["content"] == END)["rstrip"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert json.loads((tmp_path / CONFIG).read_text())["eos_token"] == END
    rendering = Rendering(template="clean", system_prompt=None, loss_on="all", max_length=9, max_prompt_length=None, new_tokens=None)
    with pytest.raises(ValueError, match=r"wanted no normalizer and '<\|im_end\|>' as an added token .* got rstrip; take another base"):
        Renderer(tmp_path, rendering)


def _odd() -> Iterable[tuple[list[dict[str, str]], str, str]]:
    for number, said in enumerate(ODD):
        yield [SYSTEM] if number % 2 else MULTI_TURN, ODD[-number - 1], said
        yield [{"role": "user", "content": said}, {"role": "assistant", "content": said}], said, said


def _tokens(tokenizer: PreTrainedTokenizerBase, row: Rendered) -> Pieces:
    labels: np.ndarray = row.reply_labels
    assert ((labels == row.ids) | (labels == IGNORED)).all()
    return [(str(tokenizer.decode([token])), label != IGNORED) for token, label in zip(row.ids, labels, strict=True)]
