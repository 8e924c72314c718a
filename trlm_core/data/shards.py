"""Shards: the parquet files of one split, `train-00000-of-00002.parquet`."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

ROWS_PER_SHARD = 50_000


def write_shards(folder: Path, split: str, table: pa.Table) -> list[Path]:
    """Write the split in order; an empty split has one empty shard, so that its schema can be read."""
    parts = list(_parts(table))
    paths = [folder / f"{split}-{index:05d}-of-{len(parts):05d}.parquet" for index in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        pq.write_table(part, path, compression="zstd")
    return paths


def read_shards(folder: Path, split: str) -> pa.Table:
    return pyarrow.dataset.dataset(shard_paths(folder, split), format="parquet").to_table()


def shard_paths(folder: Path, split: str) -> list[str]:
    paths = sorted(str(path) for path in folder.glob(f"{split}-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{folder}: wanted shards {split}-*.parquet, got none")
    return paths


def _parts(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, max(table.num_rows, 1), ROWS_PER_SHARD):
        yield table.slice(start, ROWS_PER_SHARD)
