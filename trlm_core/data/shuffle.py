"""One global shuffle in bounded memory: rows are dealt into buckets of the new order on disk, and each bucket is then sorted.

The order depends on the seed and the number of rows alone, not on how the rows come or how large a bucket is.
"""

import contextlib
import itertools
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.ipc

BUCKET_BYTES = 4 << 20  # small enough for the processor's caches and for what an allocator keeps at hand: ten times faster than 16 MiB
DEAL_BYTES = 4 << 20  # of rows that are dealt at once, at least
PIECE_BYTES = 16 << 10  # that a bucket gets at once, at least, on average
DEALERS = 2
PLACE = "_place"


class InOrder(Protocol):
    """Rows in their new order."""

    def tables(self, first: int, last: int) -> Iterator[pa.Table]:
        """From place `first` up to `last`, a bucket at a time; by as many threads as like."""
        ...


@dataclass(frozen=True)
class Dealt:
    """Rows in buckets of their new order, the pieces of all buckets in one file."""

    rows: int
    bucket_rows: int
    schema: pa.Schema
    spool: BinaryIO
    pieces: list[list[tuple[int, int]]]  # of each bucket: offset, bytes

    def tables(self, first: int, last: int) -> Iterator[pa.Table]:
        for bucket in range(first // self.bucket_rows, -(-min(last, self.rows) // self.bucket_rows)):
            start = max(0, first - bucket * self.bucket_rows)
            yield self._sorted(bucket).slice(start, last - bucket * self.bucket_rows - start)

    def _sorted(self, bucket: int) -> pa.Table:
        read = (os.pread(self.spool.fileno(), size, offset) for offset, size in self.pieces[bucket])
        table = pa.Table.from_batches([pyarrow.ipc.read_record_batch(piece, self.schema) for piece in read]).combine_chunks()
        return table.take(pa.array(np.argsort(table[PLACE].to_numpy()))).drop_columns([PLACE])


@dataclass(frozen=True)
class Shuffle:
    rows: int
    seed: int
    bytes: int  # of all rows, as Arrow holds them; an estimate does

    @property
    def places(self) -> np.ndarray:
        """Row number -> its place in the new order."""
        places = np.empty(self.rows, np.int64)
        places[np.random.default_rng(self.seed).permutation(self.rows)] = np.arange(self.rows)
        return places

    @property
    def bucket_rows(self) -> int:
        return max(1, -(-self.rows // max(1, -(-self.bytes // BUCKET_BYTES))))

    @contextlib.contextmanager
    def dealt(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema, near: Path) -> Iterator[Dealt]:
        """`near`: folder of the temporary file, which is gone afterwards."""
        buckets = -(-self.rows // self.bucket_rows)
        with tempfile.TemporaryFile(prefix=".shuffle-", dir=near) as spool:
            dealt = Dealt(self.rows, self.bucket_rows, schema.append(pa.field(PLACE, pa.int64())), spool, [[] for _ in range(buckets)])
            self._deal(batches, dealt)
            yield dealt

    def _deal(self, batches: Iterable[pa.RecordBatch], dealt: Dealt) -> None:
        """By two threads, each with rows of its own: which of them writes its pieces first makes no difference."""
        tables = _Shared(self._placed(gathered(batches, max(DEAL_BYTES, len(dealt.pieces) * PIECE_BYTES))))
        writing = threading.Lock()

        def work() -> None:
            while (table := tables.next()) is not None:
                pieces = _pieces(table, self.bucket_rows, len(dealt.pieces))
                with writing:
                    for bucket, piece in pieces:
                        dealt.pieces[bucket].append((dealt.spool.tell(), piece.size))
                        dealt.spool.write(piece)

        with ThreadPoolExecutor(DEALERS) as threads:
            for done in [threads.submit(work) for _ in range(DEALERS)]:
                done.result()
        dealt.spool.flush()

    def _placed(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        places, start = self.places, 0
        for table in tables:
            yield table.append_column(PLACE, pa.array(places[start : start + table.num_rows]))
            start += table.num_rows
        assert start == self.rows, f"{self.rows} rows were announced, {start} came"


class _Shared:
    """An iterator that threads take from in turn."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables, self._guard = tables, threading.Lock()

    def next(self) -> pa.Table | None:
        with self._guard:
            return next(self._tables, None)


def _pieces(table: pa.Table, bucket_rows: int, buckets: int) -> list[tuple[int, pa.Buffer]]:
    """Bucket -> its rows of the table."""
    mine = table[PLACE].to_numpy() // bucket_rows
    order = np.argsort(mine, kind="stable")
    (grouped,) = table.take(pa.array(order)).combine_chunks().to_batches()
    edges = np.searchsorted(mine[order], np.arange(buckets + 1)).tolist()
    spans = enumerate(itertools.pairwise(edges))
    return [(bucket, grouped.slice(first, last - first).serialize()) for bucket, (first, last) in spans if last > first]


def gathered(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Batches put together until they hold so many bytes, in one piece: Arrow takes rows from many pieces five times slower."""
    waiting: list[pa.RecordBatch] = []
    held = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        waiting.append(batch)
        held += batch.nbytes
        if held >= size:
            yield pa.Table.from_batches(waiting).combine_chunks()
            waiting, held = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()
