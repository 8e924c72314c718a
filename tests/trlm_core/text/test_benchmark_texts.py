"""Texts of benchmark questions: columns joined, lists and structs of strings in their order."""

from typing import Any

import pyarrow as pa
import pytest

from trlm_core.text.benchmark_texts import question_texts

ARC = {"id": "Mercury_1", "question": "Which is hot?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"}


@pytest.mark.parametrize(
    ("row", "columns", "text"),
    [
        ({"question": "How many?", "answer": "7"}, ["question"], "How many?"),
        ({"question": "Is it?", "passage": "It is."}, ["question", "passage"], "Is it? It is."),
        ({"question": "Is it?", "passage": "It is."}, ["passage", "question"], "It is. Is it?"),
        ({"question": "Which?", "choices": ["ice", "fire"], "answer": 1}, ["question", "choices"], "Which? ice fire"),
        (ARC, ["question"], "Which is hot?"),
        (ARC, ["question", "choices"], "Which is hot? ice fire"),
        ({"turns": [{"content": "One?"}, {"content": "Two?"}]}, ["turns"], "One? Two?"),
        ({"question": "Which?", "answer": 3}, ["question", "answer"], "Which?"),
        ({"question": "Which?", "hint": None}, ["question", "hint"], "Which?"),
    ],
)
def test_the_columns_texts_are_joined_in_their_order(row: dict[str, Any], columns: list[str], text: str):
    assert question_texts([row], columns) == [text]


def test_every_row_gives_a_text_in_its_order():
    assert question_texts([{"q": "one"}, {"q": "two"}, {"q": "one"}], ["q"]) == ["one", "two", "one"]
    assert question_texts([], ["q"]) == []


def test_rows_of_an_arrow_table_are_rows():
    assert question_texts(pa.Table.from_pylist([ARC, ARC]).to_pylist(), ["question", "choices"]) == ["Which is hot? ice fire"] * 2


@pytest.mark.parametrize("row", [{"question": ""}, {"question": " \n"}, {"question": None}, {"question": []}, {"question": 3}])
def test_a_row_without_text_is_refused_with_the_columns_that_were_wanted(row: dict[str, Any]):
    with pytest.raises(ValueError, match="wanted text in question, got"):
        question_texts([row], ["question"])


def test_a_missing_column_is_named_although_others_have_text():
    with pytest.raises(ValueError, match="wanted the column choices, got question, answer"):
        question_texts([{"question": "Which?", "answer": 1}], ["question", "choices"])
