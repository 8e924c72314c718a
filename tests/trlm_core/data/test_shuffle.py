"""The shuffle: one order for a seed and a number of rows, however the rows come and however little is held at once."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trlm_core.data.shuffle import Shuffle

ROWS = 1_000
SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])
TABLE = pa.table({"number": np.arange(ROWS), "text": [str(number) * 20 for number in range(ROWS)]}, schema=SCHEMA)
WANTED = np.random.default_rng(7).permutation(ROWS).tolist()  # place -> row


def order(folder: Path, *, batch_rows: int, edges: list[int]) -> list[int]:
    shuffle = Shuffle(ROWS, 7, TABLE.nbytes)
    with shuffle.dealt(iter(TABLE.to_batches(batch_rows)), SCHEMA, folder) as dealt:
        tables = [table for first, last in itertools.pairwise(edges) for table in dealt.tables(first, last)]
    shuffled = pa.concat_tables(tables)
    assert shuffled.schema == SCHEMA
    assert shuffled["text"].to_pylist() == [str(number) * 20 for number in shuffled["number"].to_pylist()], "rows stay whole"
    return shuffled["number"].to_pylist()


@pytest.fixture(params=[1 << 20, 4_000, 100])
def little(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("BUCKET_BYTES", "DEAL_BYTES"):
        monkeypatch.setattr(f"trlm_core.data.shuffle.{limit}", request.param)
    monkeypatch.setattr("trlm_core.data.shuffle.PIECE_BYTES", 1)


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("batch_rows", [1, 64, ROWS])
def test_the_order_is_the_seeds_alone(tmp_path: Path, batch_rows: int):
    assert order(tmp_path, batch_rows=batch_rows, edges=[0, ROWS]) == WANTED


@pytest.mark.usefixtures("little")
def test_any_stretch_of_the_new_order_can_be_read_by_itself(tmp_path: Path):
    assert order(tmp_path, batch_rows=64, edges=[0, 1, 2, 333, 334, 999, ROWS]) == WANTED
    with Shuffle(ROWS, 7, TABLE.nbytes).dealt(iter(TABLE.to_batches()), SCHEMA, tmp_path) as dealt:
        assert [number for table in dealt.tables(990, ROWS + 500) for number in table["number"].to_pylist()] == WANTED[990:]


def test_nothing_stays_on_the_disk(tmp_path: Path):
    order(tmp_path, batch_rows=64, edges=[0, ROWS])
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_fails_fails_the_shuffle(tmp_path: Path):
    def batches() -> Iterator[pa.RecordBatch]:
        yield from TABLE.to_batches(64)[:5]
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"), Shuffle(ROWS, 7, TABLE.nbytes).dealt(batches(), SCHEMA, tmp_path):
        pytest.fail("dealt what never came")


def test_fewer_rows_than_announced_are_no_shuffle(tmp_path: Path):
    with (
        pytest.raises(AssertionError, match="1000 rows were announced, 64 came"),
        Shuffle(ROWS, 7, TABLE.nbytes).dealt(iter(TABLE.to_batches(64)[:1]), SCHEMA, tmp_path),
    ):
        pytest.fail("dealt what never came")


def test_no_rows_are_shuffled_into_none(tmp_path: Path):
    with Shuffle(0, 7, 0).dealt(iter([]), SCHEMA, tmp_path) as dealt:
        assert list(dealt.tables(0, 0)) == []
