"""Thoughts: written, parsed and refused."""

import pytest

from trlm_core.text.thoughts import Reply, parse_reply, spoken, with_thought


def test_what_is_written_is_parsed_again():
    assert with_thought("4 + 3 = 7.", "7") == "<think>\n4 + 3 = 7.\n</think>\n7"
    assert parse_reply(with_thought("4 + 3 = 7.", "7")) == Reply("4 + 3 = 7.", "7")


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("<think>a</think>b", Reply("a", "b")),
        ("\n <think>\na\nb\n</think>\n\nc\nd\n", Reply("a\nb", "c\nd")),
        ("<think> 3 < 5 </think> 7 > 5", Reply("3 < 5", "7 > 5")),
    ],
)
def test_one_closed_thought_and_an_answer_are_well_formed(text: str, reply: Reply):
    assert parse_reply(text) == reply


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("7", "no thought"),
        ("", "nothing"),
        ("<think>\n4 + 3 = 7.", "unclosed"),
        ("4 + 3 = 7.\n</think>\n7", "never opened"),
        ("<think>\n4 + 3 = 7.\n</think>\n", "no answer"),
        ("<think>\n4 + 3 = 7.\n</think>", "no answer"),
        ("<think>\n\n</think>\n7", "empty thought"),
        ("Well, <think>\n4 + 3 = 7.\n</think>\n7", "not at the start"),
        ("<think>a</think>b<think>c</think>d", "two thoughts"),
        ("<think>a<think>b</think>c", "opened twice"),
        ("<think>a</think>b</think>c", "closed twice"),
        ("</think>a<think>b", "turned around"),
        ("<Think>a</Think>b", "other letters"),
    ],
)
def test_anything_else_is_not_well_formed(text: str, why: str):
    assert parse_reply(text) is None, why


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>a</think>\n 7 ", "7"),
        ("<think>a</think>b</think> 7", "7"),
        ("7 ", "7"),
        ("<think>a", "<think>a"),
        ("<think>a</think>", ""),
    ],
)
def test_what_is_spoken_comes_after_the_last_closed_thought(text: str, said: str):
    assert spoken(text) == said
