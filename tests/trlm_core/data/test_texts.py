"""Texts that stay in their files: whatever happens to the rows on their way, each gets its own back."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from trlm_core.data.rows import CONVERSATION, PREFERENCE, Row
from trlm_core.data.shards import ArrowWriter, closing_rows
from trlm_core.data.shuffle import Shuffle
from trlm_core.data.texts import FILE, Ordered, Texts, lifted_schema

TURNS = [[], ["Hi"], ["Grüße, 世界", ""], ["", "", "x" * 10_000], ["first", "second", "third", "fourth"]]
MANY = 300


def said(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(texts)]


def row(number: int, **conversations: Sequence[str]) -> Row:
    place = {"_source_dataset": "a", "_source_subset": "", "_source_split": "train", "_source_row": number}
    return {**{name: said(texts) for name, texts in conversations.items()}, "source": f"source {number % 3}", **place}


def file_of(path: Path, tables: Sequence[pa.Table]) -> Path:
    with closing_rows(ArrowWriter(path, tables[0].schema)) as writer:
        for table in tables:
            writer.write(table)
    return path


def conversations(first: int, count: int) -> pa.Table:
    rows = [row(number, messages=[*TURNS[number % len(TURNS)], f"number {number}"][: number % 7]) for number in range(first, first + count)]
    return pa.Table.from_pylist(rows, CONVERSATION)


def lifted(texts: Texts, *paths: Path) -> pa.Table:
    return pa.Table.from_batches([batch for path in paths for batch in texts.lifted(path)])


def test_every_row_gets_its_own_texts_in_any_order_from_any_file(tmp_path: Path):
    one, other = conversations(0, 100), conversations(100, 200)
    paths = file_of(tmp_path / "one.arrow", [one]), file_of(tmp_path / "other.arrow", [other.slice(0, 70), other.slice(70)])
    order = np.random.default_rng(3).permutation(MANY)
    with Texts.opened() as texts:
        back = texts.put_back(lifted(texts, *paths).take(pa.array(order)), CONVERSATION)
    assert back.to_pylist() == pa.concat_tables([one, other]).take(pa.array(order)).to_pylist()
    assert back.schema == CONVERSATION
    back.validate(full=True)


def test_both_sides_of_a_pair_come_back(tmp_path: Path):
    pairs = pa.Table.from_pylist([row(n, chosen=["q", f"yes {n}"], rejected=["q", "no" * n]) for n in range(9)], PREFERENCE)
    with Texts.opened() as texts:
        assert texts.put_back(lifted(texts, file_of(tmp_path / "pairs.arrow", [pairs])), PREFERENCE).equals(pairs)


def test_a_stretch_of_a_table_and_a_choice_of_its_rows_come_back(tmp_path: Path):
    """What a filter keeps is chosen among rows without texts; a shard begins in the middle of a bucket."""
    table, kept = conversations(0, 50), [number % 3 == 0 for number in range(50)]
    with Texts.opened() as texts:
        chosen = lifted(texts, file_of(tmp_path / "rows.arrow", [table.slice(7)])).filter(pa.array(kept[7:]))
        back = texts.put_back(chosen.slice(2, 9), CONVERSATION)
    assert back.to_pylist() == table.slice(7).filter(pa.array(kept[7:])).slice(2, 9).to_pylist()


@pytest.mark.parametrize("texts_of_rows", [[[]], [[""]], [[], ["", ""]]])
def test_rows_of_a_file_without_any_letter_come_back(tmp_path: Path, texts_of_rows: list[list[str]]):
    table = pa.Table.from_pylist([row(number, messages=each) for number, each in enumerate(texts_of_rows)], CONVERSATION)
    with Texts.opened() as texts:
        assert texts.put_back(lifted(texts, file_of(tmp_path / "rows.arrow", [table])), CONVERSATION).equals(table)


def test_no_rows_come_back_as_none(tmp_path: Path):
    with Texts.opened() as texts:
        assert texts.put_back(lifted_schema(CONVERSATION).empty_table(), CONVERSATION).equals(CONVERSATION.empty_table())
        assert list(texts.lifted(file_of(tmp_path / "none.arrow", [CONVERSATION.empty_table()]))) == []


def test_rows_on_their_way_carry_no_text_and_every_other_column(tmp_path: Path):
    table = conversations(0, 20).append_column("_tokens", pa.array(range(20), pa.int32()))
    with Texts.opened() as texts:
        light = lifted(texts, file_of(tmp_path / "rows.arrow", [table]))
    assert light.schema.names == [*table.schema.names, FILE]
    assert light["_tokens"].to_pylist() == list(range(20))
    assert light.nbytes < table.nbytes / 4


def test_shuffled_rows_come_with_their_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trlm_core.data.shuffle.BUCKET_BYTES", 1_000)
    table = conversations(0, MANY)
    path = file_of(tmp_path / "rows.arrow", [table])
    wanted = table.take(pa.array(np.random.default_rng(7).permutation(MANY))).to_pylist()
    with Texts.opened() as texts, Shuffle(MANY, 7, 50_000).dealt(texts.lifted(path), lifted_schema(CONVERSATION), tmp_path) as dealt:
        ordered = Ordered(dealt, texts, CONVERSATION)
        assert rows_of(ordered, 0, MANY) == wanted
        assert rows_of(ordered, 11, 120) == wanted[11:120]


def rows_of(ordered: Ordered, first: int, last: int) -> list[dict[str, Any]]:
    return [each for table in ordered.tables(first, last) for each in table.to_pylist()]


def test_a_file_that_has_become_shorter_is_an_error(tmp_path: Path):
    table = pa.Table.from_pylist([row(0, messages=["a" * 50_000])], CONVERSATION)
    path = file_of(tmp_path / "rows.arrow", [table])
    with pytest.raises(OSError, match=r"rows\.arrow: wanted 50,000 bytes"):
        texts_after(lambda: os.truncate(path, 20_000), path)


def test_a_file_that_another_takes_the_place_of_is_an_error_at_the_next_batch(tmp_path: Path):
    tables = [conversations(0, 40), conversations(40, 40)]
    path, other, texts = file_of(tmp_path / "rows.arrow", tables), file_of(tmp_path / "other.arrow", tables), Texts()
    batches = texts.lifted(path)
    next(batches)
    other.replace(path)
    with pytest.raises(OSError, match=r"rows\.arrow: wanted the file as it was .* it has changed meanwhile"):
        next(batches)


def test_a_file_that_is_written_again_while_its_texts_are_read_is_an_error_at_the_end(tmp_path: Path):
    path = file_of(tmp_path / "rows.arrow", [conversations(0, 40)])

    def write_again() -> None:
        time.sleep(0.02)  # past the tick of the kernel's clock
        path.write_bytes(path.read_bytes())

    with pytest.raises(OSError, match=r"rows\.arrow: wanted the file as it was .* it has changed meanwhile"):
        texts_after(write_again, path)


def texts_after(change: Callable[[], None], path: Path) -> pa.Table:
    with Texts.opened() as texts:
        light = lifted(texts, path).take(pa.array([0]))  # a copy, as dealing makes it
        change()
        return texts.put_back(light, CONVERSATION)


def test_files_are_closed_when_no_text_is_wanted_any_more(tmp_path: Path):
    with Texts.opened() as texts:
        light = lifted(texts, file_of(tmp_path / "rows.arrow", [conversations(0, 5)]))
    with pytest.raises(ValueError, match="closed file"):
        texts.put_back(light, CONVERSATION)
