"""Scorers: what counts as the right answer, reply by reply."""

import pytest

from trlm_core.text.scorers import extract_answer, is_right

RIGHT = [
    ("number", "7", "7"),
    ("number", "The final answer to the arithmetic problem is 12.", "12"),
    ("number", "4 + 3 = 7", "7"),
    ("number", "4-3=1", "1"),
    ("number", "**7**", "7"),
    ("number", "7.0", "7"),
    ("number", "1.50", "1.5"),
    ("number", "-3", "-3"),
    ("number", "The sum of 4 and -7 is -3.", "-3"),
    ("number", "x = 5", "5"),
    ("number", "x=5", "5"),
    ("number", "Answer: 12 legs.", "12"),
    ("number", "$\\boxed{42}$", "42"),
    ("number", "1,234", "1234"),
    ("number", "It is 7\n", "7"),
    ("number", "<think>\n4 + 3 = 7.\n</think>\n7", "7"),
    ("number", "<think>\n4 + 3 = 8.\n</think>\nThe answer is 7.", "7"),
    ("number", "<think>\n4 + 3 = 7.\n</think>\n8 is wrong, it is 7", "7"),
    ("number", "4 + 3 = 7.\n</think>\n7", "7"),
    ("numbers", "[1, 2, 3]", "1, 2, 3"),
    ("numbers", "['1', '2']", "1, 2"),
    ("numbers", '["1", "2"]', "1, 2"),
    ("numbers", "1, 2 and 3", "1, 2, 3"),
    ("numbers", "1, 2, and 3", "1, 2, 3"),
    ("numbers", "1,2,3", "1, 2, 3"),
    ("numbers", "100,200,300", "100, 200, 300"),
    ("numbers", "8", "8"),
    ("numbers", "The numbers in order: -5, 0, 7.50", "-5, 0, 7.5"),
    ("numbers", "I sorted 3 numbers: 4, 9, 12.", "4, 9, 12"),
    ("numbers", "none", "none"),
    ("numbers", "<think>\n3 < 5, discard.\n</think>\nNone.", "none"),
    ("word", "cat", "cat"),
    ("word", "Cat.", "cat"),
    ("word", "The word backwards is **TAC**", "tac"),
    ("word", "<think>\nc a t, t a c.\n</think>\ntac", "tac"),
    ("words", "apple, fig, pear", "apple, fig, pear"),
    ("words", "Apple, Fig, Pear.", "apple, fig, pear"),
    ("words", "The sorted words are: apple, fig and pear", "apple, fig, pear"),
    ("words", "['apple', 'fig']", "apple, fig"),
    ("words", "fig", "fig"),
    ("fraction", "3/4", "3/4"),
    ("fraction", "The result is 3 / 4.", "3/4"),
    ("fraction", "-3/4", "-3/4"),
    ("factors", "2 * 3 * 5", "2 * 3 * 5"),
    ("factors", "2 x 3 x 5", "2 * 3 * 5"),
    ("factors", "30 = 5 × 3 × 2", "2 * 3 * 5"),
    ("factors", "7", "7"),
    ("yes_no", "Yes", "yes"),
    ("yes_no", "False.", "no"),
    ("yes_no", "The answer is no.", "no"),
]
WRONG = [
    ("fraction", "6/8", "3/4"),  # not simplified
    ("fraction", "4/2", "2"),
    ("number", "8", "7"),
    ("number", "", "7"),
    ("number", "seven", "7"),
    ("number", "3", "-3"),
    ("number", "7.5", "7"),
    ("number", "17", "7"),
    ("number", "<think>\n4 + 3 = 7.\n</think>\n", "7"),
    ("number", "<think>\n4 + 3 = 7.\n</think>\n8", "7"),
    ("number", "7 or 8", "7"),
    ("numbers", "3, 2, 1", "1, 2, 3"),
    ("numbers", "1, 2", "1, 2, 3"),
    ("numbers", "1, 2, 3, 4", "1, 2, 3"),
    ("numbers", "5", "none"),
    ("numbers", "none", "5"),
    ("numbers", "", "none"),
    ("word", "cats", "cat"),
    ("word", "", "cat"),
    ("words", "pear, fig, apple", "apple, fig, pear"),
    ("words", "apple, fig", "apple, fig, pear"),
    ("fraction", "4/3", "3/4"),
    ("fraction", "3/0", "3/4"),
    ("fraction", "none", "3/4"),
    ("factors", "2 * 15", "2 * 3 * 5"),
    ("factors", "2 * 3", "2 * 3 * 3"),
    ("yes_no", "maybe", "yes"),
    ("yes_no", "Yes", "no"),
]


@pytest.mark.parametrize(("kind", "reply", "answer"), RIGHT)
def test_a_reply_is_right(kind: str, reply: str, answer: str):
    assert is_right(reply, answer, kind)


@pytest.mark.parametrize(("kind", "reply", "answer"), WRONG)
def test_a_reply_is_wrong(kind: str, reply: str, answer: str):
    assert not is_right(reply, answer, kind)


def test_an_unclosed_thought_is_read_as_a_whole_since_nothing_was_said_after_it():
    assert is_right("<think>\n4 + 3 = 7.", "7", "number"), "the lenient extractor is the same for models that never think"
    assert not is_right("<think>\n4 + 3 = 7. 7 - 2 =", "7", "number")


@pytest.mark.parametrize("kind", ["number", "numbers", "factors", "fraction", "yes_no"])
def test_a_reply_without_the_form_asked_for_gives_no_answer(kind: str):
    assert extract_answer("I cannot tell", kind) is None


@pytest.mark.parametrize("kind", ["number", "numbers", "word", "words", "factors", "fraction", "yes_no"])
@pytest.mark.parametrize("reply", ["", " ", "</think>", "<think>", "/", ",", "-", "1/0", "0/0", "1 / 00", ", , ,", "**", "٣", "9" * 5000])
def test_no_reply_of_a_model_breaks_a_scorer(kind: str, reply: str):
    answer = {"word": "a", "words": "a, b", "fraction": "1/2", "factors": "2 * 3", "yes_no": "yes", "numbers": "1, 2", "number": "1"}[kind]
    assert is_right(reply, answer, kind) is False
