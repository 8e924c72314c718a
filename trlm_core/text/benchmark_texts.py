"""The text of a benchmark's questions: columns joined by a blank, lists and structs of strings in their order.

{"question": "Which is hot?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}} -> "Which is hot? ice fire"
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LABELS = {"label", "labels"}  # A, B, C: no text of the question


def question_texts(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Raises ValueError where a row lacks a column, or has no text in any."""
    return [_text(row, columns) for row in rows]


def _text(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    if absent := [column for column in columns if column not in row]:
        raise ValueError(f"benchmark: wanted the column {', '.join(absent)}, got {', '.join(row)}")
    text = " ".join(part for column in columns for part in _strings(row[column]))
    if not text.strip():
        raise ValueError(f"benchmark: wanted text in {', '.join(columns)}, got {dict(row)!r:.200}")
    return text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from () if key in LABELS else _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)
