"""Texts that stay in their sources' Arrow files: rows on their way say where theirs lie, and get them once they are in their new order.

{"messages": [{"role": "user", "content": "4 + 3?"}], "source": "gcd"} ->
{"messages": {"at": 71304, "turns": [{"role": "user", "size": 6}]}, "source": "gcd", "_file": 0}
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc

from trlm_core.artifacts.known_hashes import Stamp
from trlm_core.data.rows import CONVERSATIONS, MESSAGES
from trlm_core.data.shuffle import Dealt

pc: Any = pyarrow.compute  # made at import, so no type checker knows its functions

FILE = "_file"
TURNS = pa.list_(pa.struct([pa.field("role", pa.string(), nullable=False), pa.field("size", pa.int32(), nullable=False)]))
LIFTED = pa.struct([pa.field("at", pa.int64()), pa.field("turns", TURNS)])  # a row's texts lie one behind the other


class Texts:
    """The Arrow files whose rows are on their way; by as many threads as like."""

    def __init__(self) -> None:
        self._files: list[BinaryIO] = []
        self._stamps: dict[Path, Stamp] = {}

    @classmethod
    @contextlib.contextmanager
    def opened(cls) -> Iterator["Texts"]:
        texts = cls()
        try:
            yield texts
            for path in texts._stamps:
                texts._check(path)
        finally:
            for file in texts._files:
                file.close()

    def lifted(self, path: Path) -> Iterator[pa.RecordBatch]:
        """Batches of a raw Arrow file without their texts, which are not read.

        The file has to stay as it is: an OSError says at the next batch, or when all texts are read, that it did not. Of the batches
        nothing is copied: what is cut off there while they are used is a SIGBUS.
        """
        number = len(self._files)
        self._stamps.setdefault(path, Stamp.of(path))  # before it is opened: texts and rows are of one file, whoever puts another there
        self._files.append(path.open("rb", buffering=0))
        for index in itertools.count():
            batch, addresses = _mapped(path, index)
            self._check(path)
            if batch is None:
                return
            yield _lifted(batch, number, addresses)

    def _check(self, path: Path) -> None:
        wanted, got = self._stamps[path], Stamp.of(path)
        if got != wanted:
            raise OSError(f"{path}: wanted the file as it was when its first row was read ({wanted}), got {got}; it has changed meanwhile")

    def put_back(self, table: pa.Table, schema: pa.Schema) -> pa.Table:
        """The same rows with their texts, as the schema has them."""
        files = [self._files[number] for number in table[FILE].to_pylist()]
        columns = {name: table[name].combine_chunks() for name in schema.names}
        columns |= {name: _whole(columns[name], files) for name in CONVERSATIONS if name in columns}
        return pa.table(columns, schema=schema)


@dataclass(frozen=True)
class Ordered:
    """Dealt rows with their texts."""

    dealt: Dealt
    texts: Texts
    schema: pa.Schema

    def tables(self, first: int, last: int) -> Iterator[pa.Table]:
        """As `Dealt` gives them."""
        for table in self.dealt.tables(first, last):
            yield self.texts.put_back(table, self.schema)


def lifted_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([_lifted_field(field) for field in schema]).append(pa.field(FILE, pa.int32()))


def _lifted_field(field: pa.Field) -> pa.Field:
    return field.with_type(LIFTED) if field.name in CONVERSATIONS else field


def _mapped(path: Path, index: int) -> tuple[pa.RecordBatch | None, range]:
    """A batch in the file's own mapped memory, None after the last, and the addresses of that.

    Mapped anew for each: what was touched of a mapping counts as the process's memory for as long as that is there.
    """
    with pa.memory_map(str(path)) as mapped, pyarrow.ipc.open_file(mapped) as reader:
        start = mapped.read_buffer(1).address
        batch = reader.get_batch(index) if index < reader.num_record_batches else None
        return batch, range(start, start + mapped.size())


def _lifted(batch: pa.RecordBatch, number: int, addresses: range) -> pa.RecordBatch:
    named = zip(batch.schema.names, batch.columns, strict=True)
    columns = [_places(column, addresses) if name in CONVERSATIONS else column for name, column in named]
    files = pa.repeat(pa.scalar(number, pa.int32()), batch.num_rows)
    return pa.RecordBatch.from_arrays([*columns, files], schema=lifted_schema(batch.schema))


def _places(conversation: pa.ListArray, addresses: range) -> pa.StructArray:
    """`addresses`: at which the file is mapped."""
    flat, firsts = conversation.flatten(), _edges(pc.list_value_length(conversation).to_numpy())
    content = pc.struct_field(flat, "content")
    sizes = pc.binary_length(content)
    at = _edges(sizes.to_numpy())[firsts[:-1]] + _start(content, addresses)
    turns = pa.StructArray.from_arrays([pc.struct_field(flat, "role"), sizes], fields=list(TURNS.value_type))
    listed = pa.ListArray.from_arrays(pa.array(firsts, pa.int32()), turns, type=TURNS)
    return pa.StructArray.from_arrays([pa.array(at), listed], fields=list(LIFTED))


def _start(texts: pa.StringArray, addresses: range) -> int:
    """Where in the file they begin."""
    _, offsets, content = texts.buffers()
    if not len(texts) or content is None or not content.size:
        return 0  # there are none
    assert content.address in addresses, "texts that are packed lie elsewhere"
    return content.address - addresses.start + int(np.frombuffer(offsets, np.int32)[texts.offset])


def _edges(lengths: np.ndarray) -> np.ndarray:
    """Where each begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _whole(column: pa.StructArray, files: list[BinaryIO]) -> pa.ListArray:
    turns = pc.struct_field(column, "turns")
    flat, firsts = turns.flatten(), _edges(pc.list_value_length(turns).to_numpy())
    ends = _edges(pc.struct_field(flat, "size").to_numpy())
    content = _read(files, pc.struct_field(column, "at").to_pylist(), ends[firsts].tolist())
    texts = pa.StringArray.from_buffers(len(flat), pa.py_buffer(ends.astype(np.int32)), content)
    whole = pa.StructArray.from_arrays([pc.struct_field(flat, "role"), texts], fields=list(MESSAGES.value_type))
    return pa.ListArray.from_arrays(pa.array(firsts, pa.int32()), whole, type=MESSAGES)


def _read(files: list[BinaryIO], places: list[int], edges: list[int]) -> pa.Buffer:
    """The texts of all rows, one behind the other. Raises OSError where a file has become shorter."""
    content = pa.allocate_buffer(edges[-1])
    room = memoryview(content)
    for file, place, (first, last) in zip(files, places, itertools.pairwise(edges), strict=True):
        if (got := os.preadv(file.fileno(), [room[first:last]], place)) != last - first:
            raise OSError(f"{file.name}: wanted {last - first:,} bytes at {place:,}, got {got:,}; it has changed meanwhile")
    return content
