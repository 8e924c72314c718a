"""Contamination: which share of a question a row covers, and from which share on it is kept out."""

import os
import subprocess
import sys

import pytest

from trlm_core.data.contamination import BenchmarkGrams, Match

TEN = "one two three four five six seven eight nine ten"
IN_ANOTHER_PROCESS = """
from trlm_core.data.contamination import BenchmarkGrams
grams = BenchmarkGrams.of({"b": ["one two three four five six seven eight nine ten"]}, 4, 0.5)
print(grams.grams.tolist(), grams.match("so one two three four five six"))
"""


def match(text: str, *questions: str, ngram: int = 4, min_overlap: float = 0.1) -> Match | None:
    return BenchmarkGrams.of({"arc": questions}, ngram, min_overlap).match(text)


@pytest.mark.parametrize(
    ("text", "overlap"),
    [
        (TEN, 1.0),
        (f"He said: {TEN}, and left.", 1.0),
        ("one two three four", 0.4),
        ("one two three four five", 0.5),
        ("one two three four and seven eight nine ten", 0.8),
        ("two three four five five six seven eight", 0.7),
        ("seven eight nine ten one two three four", 0.8),
        ("one two three four one two three four", 0.4),
    ],
)
def test_overlap_is_the_share_of_the_questions_words_that_shared_ngrams_cover(text: str, overlap: float):
    assert match(text, TEN) == Match("arc", 0, overlap)


@pytest.mark.parametrize("text", ["", "one two three", "one two three and four five six", "four three two one", "eleven twelve", "?!"])
def test_a_text_without_a_shared_ngram_matches_nothing(text: str):
    assert match(text, TEN) is None


@pytest.mark.parametrize(("min_overlap", "matches"), [(0.69, True), (0.7, True), (0.71, False)])
def test_an_overlap_of_exactly_the_threshold_is_contaminated(min_overlap: float, matches: bool):
    assert (match("one two three four five six seven", TEN, min_overlap=min_overlap) is not None) is matches


def test_the_whole_question_is_contaminated_at_a_threshold_of_one():
    assert match(TEN, TEN, min_overlap=1.0) == Match("arc", 0, 1.0)
    assert match(TEN.removesuffix(" ten"), TEN, min_overlap=1.0) is None


@pytest.mark.parametrize("text", ["ONE, two; (three) four: five! six? seven\neight -- nine... “ten”", TEN.title()])
def test_letter_case_and_punctuation_make_no_difference(text: str):
    assert match(text, TEN) == Match("arc", 0, 1.0)


def test_words_of_other_scripts_are_words():
    assert match("Где живёт большая белая СОВА?", "где живёт большая белая сова", ngram=8) == Match("arc", 0, 1.0)


def test_a_longer_ngram_needs_a_longer_run():
    run = "one two three four five six"
    assert [match(run, TEN, ngram=ngram) is not None for ngram in (5, 6, 7, 8)] == [True, True, False, False]


def test_a_question_shorter_than_an_ngram_is_matched_whole():
    short = "Which of these is hot?"
    assert match("Tell me: which of these is hot, ice?", short, ngram=8) == Match("arc", 0, 1.0)
    assert match("Tell me: which of these is cold, ice?", short, ngram=8) is None


@pytest.mark.parametrize(("question", "matches"), [("what is the time", False), ("what is the time now", True)])
def test_a_question_of_fewer_than_five_words_is_left_out(question: str, matches: bool):
    assert (match(question, question, ngram=3) is not None) is matches
    assert (match(question, question, ngram=8) is not None) is matches


def test_a_match_names_the_benchmark_and_the_question_that_is_covered_most():
    texts = {"arc": ["too short", f"{TEN} and some more words"], "gsm8k": ["another question about some clips", TEN]}
    assert BenchmarkGrams.of(texts, 4, 0.1).match(TEN) == Match("gsm8k", 1, 1.0)
    assert BenchmarkGrams.of(texts, 4, 0.1).match(f"{TEN} and some more words") == Match("arc", 1, 1.0)


def test_numbers_of_questions_count_those_that_are_left_out():
    assert match(TEN, "too short", "", TEN) == Match("arc", 2, 1.0)


def test_ngrams_of_two_questions_do_not_add_up():
    assert (
        match("one two three four seven eight nine ten", "one two three four a b c d", "seven eight nine ten e f g h", min_overlap=0.6)
        is None
    )


def test_a_phrase_that_repeats_in_the_question_covers_it_wherever_it_stands():
    assert match("the cat sat down", "the cat sat down and the cat sat down") == Match("arc", 0, 8 / 9)


@pytest.mark.parametrize("texts", [{}, {"arc": []}, {"arc": ["too short"]}])
def test_without_questions_nothing_is_contaminated(texts: dict[str, list[str]]):
    assert BenchmarkGrams.of(texts, 4, 0.5).match(TEN) is None


def test_thousands_of_questions_are_told_apart():
    grams = BenchmarkGrams.of({"b": [f"what is the value of item{n} in list{n} today" for n in range(3_000)]}, 4, 0.9)
    assert grams.match("what is the value of item2718 in list2718 today") == Match("b", 2718, 1.0)
    assert grams.match("what is the value of item2718 in list2719 today") is None


@pytest.mark.parametrize("seed", ["0", "4711"])
def test_another_process_makes_the_same_ngrams_whatever_its_hash_seed(seed: str):
    grams = BenchmarkGrams.of({"b": [TEN]}, 4, 0.5)
    out = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == f"{grams.grams.tolist()} {Match('b', 0, 0.6)}"
