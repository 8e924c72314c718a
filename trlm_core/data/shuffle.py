"""One global shuffle in bounded memory: rows are dealt into buckets of the new order on disk, and each bucket is then sorted.

The order depends on the seed and the number of rows alone, not on how the rows come or how large a bucket is.
"""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from trlm_core.data.shards import ArrowWriter, iter_shards

DEAL_BYTES = 16 << 20  # of rows that are dealt at once
BUCKET_BYTES = 16 << 20
MOST_BUCKETS = 256  # files open at once
PLACE = "_place"


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
        buckets = min(MOST_BUCKETS, max(1, -(-self.bytes // BUCKET_BYTES)))
        return max(1, -(-self.rows // buckets))

    def of(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema, near: Path) -> Iterator[pa.Table]:
        """The rows in their new order, a bucket at a time. `near`: folder of the temporary files."""
        with tempfile.TemporaryDirectory(prefix=".shuffle-", dir=near) as spool:
            self._deal(batches, schema, Path(spool))
            with ThreadPoolExecutor(1) as ahead:  # the next bucket is sorted while this one is written
                coming: Future[pa.Table] | None = None
                for bucket in range(-(-self.rows // self.bucket_rows)):
                    following = ahead.submit(_sorted_bucket, Path(spool), bucket)
                    if coming is not None:
                        yield coming.result()
                    coming = following
                if coming is not None:
                    yield coming.result()

    def _deal(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema, spool: Path) -> None:
        places, start = self.places, 0
        dealt_schema = schema.append(pa.field(PLACE, pa.int64()))
        buckets = [ArrowWriter(spool / f"{bucket:05d}.arrow", dealt_schema) for bucket in range(-(-self.rows // self.bucket_rows))]
        for table in gathered(batches, DEAL_BYTES):
            mine = places[start : start + table.num_rows]
            start += table.num_rows
            order = np.argsort(mine // self.bucket_rows, kind="stable")
            sorted_table = table.append_column(PLACE, pa.array(mine)).take(pa.array(order)).combine_chunks()
            edges = np.searchsorted(mine[order] // self.bucket_rows, np.arange(len(buckets) + 1))
            for bucket, (first, last) in enumerate(itertools.pairwise(edges)):
                if last > first:
                    buckets[bucket].write(sorted_table.slice(first, last - first))
        assert start == self.rows, f"{self.rows} rows were announced, {start} came"
        for writer in buckets:
            writer.close()


def _sorted_bucket(spool: Path, bucket: int) -> pa.Table:
    table = pa.Table.from_batches(iter_shards(spool, f"{bucket:05d}"))
    (spool / f"{bucket:05d}.arrow").unlink()
    return table.take(pa.array(np.argsort(table[PLACE].to_numpy()))).drop_columns([PLACE])


def gathered(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Batches put together until they hold so many bytes."""
    waiting: list[pa.RecordBatch] = []
    held = 0
    for batch in batches:
        waiting.append(batch)
        held += batch.nbytes
        if held >= size:
            yield pa.Table.from_batches(waiting)
            waiting, held = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)
