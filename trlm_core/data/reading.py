"""Reading picks in their order, the next parts ahead of their turn: as many as the process has room for, one at least."""

import functools
import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from trlm_core.data.sampling import Pick
from trlm_core.data.source_files import Gone, reader
from trlm_core.data.split_files import Part

AHEAD, LOCAL_AHEAD = 6, 2  # parts of all sources of a process that are read before their turn: there is a network to wait for, or none
MOST_BYTES = 32 << 20  # of a part that is read before its turn; a larger one is read as it is consumed
_room, _local_room = threading.BoundedSemaphore(AHEAD), threading.BoundedSemaphore(LOCAL_AHEAD)

Waiting = deque[tuple[Pick, Future[list[pa.RecordBatch]] | None]]  # with what reads it ahead of its turn


def read_picks(picks: Iterable[Pick], columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Batches with the numbers of their rows in the split."""
    coming, waiting = iter(picks), Waiting()
    first = next(coming, None)
    if first is None:
        return
    coming, room = itertools.chain([first], coming), _room if first.part.file.is_remote else _local_room
    gone = Gone()
    try:
        while _fill(waiting, coming, columns, room, gone):
            pick, read = waiting[0]
            yield from _numbered(pick, pick.part.batches(columns) if read is None else read.result())
            _leave(waiting, room)
    finally:
        gone.set_result(None)
        while waiting:
            _leave(waiting, room)


def _fill(waiting: Waiting, coming: Iterator[Pick], columns: Sequence[str], room: threading.BoundedSemaphore, gone: Gone) -> bool:
    """Begin to read the next parts where there is room; whether there is anything to wait for."""
    while room.acquire(blocking=False):
        try:
            pick = next(coming, None)
            is_small = pick is not None and pick.part.bytes(columns) <= MOST_BYTES
        except BaseException:
            room.release()
            raise
        if pick is None or not is_small:
            room.release()
            waiting.extend([] if pick is None else [(pick, None)])
            break
        waiting.append((pick, _readers().submit(_read_ahead, pick.part, columns, gone)))
    if not waiting:
        waiting.extend((pick, None) for pick in itertools.islice(coming, 1))
    return bool(waiting)


def _read_ahead(part: Part, columns: Sequence[str], gone: Gone) -> list[pa.RecordBatch]:
    reader.set(gone)
    return list(part.batches(columns))


@functools.cache
def _readers() -> ThreadPoolExecutor:
    """One for the process."""
    return ThreadPoolExecutor(AHEAD + LOCAL_AHEAD, thread_name_prefix="read")


def _leave(waiting: Waiting, room: threading.BoundedSemaphore) -> None:
    _, read = waiting.popleft()
    if read is not None:
        read.cancel()
        room.release()


def _numbered(pick: Pick, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    start = 0
    for batch in batches:
        rows, mine = batch.num_rows, np.arange(batch.num_rows)
        if pick.rows is not None:
            mine = pick.rows[np.searchsorted(pick.rows, start) : np.searchsorted(pick.rows, start + rows)] - start
            batch = batch.take(pa.array(mine))
        if batch.num_rows:
            yield batch, mine + start + pick.part.first_row
        start += rows
