"""The files of a source, local or remote, opened for reading: a read gives all that it was asked for, or fails."""

import concurrent.futures
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

import pyarrow as pa

from trlm_core.artifacts.remote import Remote

CONNECTIONS = 8  # of a process to the Hub or a bucket
_connections = threading.BoundedSemaphore(CONNECTIONS)

Gone = Future[None]  # done when whoever the rows are read for has gone
reader: ContextVar[Gone | None] = ContextVar("reader", default=None)  # of a read ahead; None: who reads waits for it


class ShortReadError(OSError):
    """Fewer or more bytes came than were asked for."""


class UnwantedError(Exception):
    """A read ahead that nobody waits for any more."""


def opened(path: str) -> pa.NativeFile:
    """`path`: local, hf:// or s3://."""
    if path.startswith("hf://"):
        return pa.PythonFile(_ExactReads(_hub().open(path, cache_type="none"), path), mode="r")
    if path.startswith("s3://"):
        folder, _, name = path.rpartition("/")
        return pa.PythonFile(_ExactReads(_bucket(folder).open(name), path), mode="r")
    return pa.OSFile(path)


def pause(seconds: float) -> None:
    """Raises UnwantedError as soon as nobody waits for this read."""
    gone = reader.get() or Gone()
    if concurrent.futures.wait([gone], seconds).done:
        raise UnwantedError


@functools.cache
def _hub() -> Any:
    """One for the process: what it has looked up of a repository holds for every thread."""
    from huggingface_hub import HfFileSystem

    return HfFileSystem()


@functools.cache
def _bucket(folder: str) -> Remote:
    return Remote(folder)


class _ExactReads:
    """A remote file whose reads give what was asked for, over a bounded number of connections."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path, self._gone = file, path, reader.get()  # Arrow reads by threads of its own, which have no context

    def read(self, size: int = -1) -> bytes:
        wanted = self._file.size - self._file.tell() if size is None or size < 0 else min(size, self._file.size - self._file.tell())
        content = self._fetched(wanted) if wanted else b""
        if len(content) != wanted:
            raise ShortReadError(f"{self._path}: wanted {wanted:,} bytes, got {len(content):,}")
        return content

    def _fetched(self, wanted: int) -> bytes:
        def fetch() -> bytes:
            with _connections:
                return self._file.read(wanted)

        return fetch() if self._gone is None else _unless(self._gone, fetch)

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def size(self) -> int:
        return self._file.size

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False


def _unless(gone: Gone, fetch: Callable[[], bytes]) -> bytes:
    """What `fetch` gives. Raises UnwantedError as soon as the reader has gone.

    A connection that has stalled cannot be woken: its thread is left to it, and keeps neither the caller nor the process's end waiting.
    """
    fetched: Future[bytes] = Future()

    def work() -> None:
        try:
            fetched.set_result(fetch())
        except BaseException as error:
            fetched.set_exception(error)

    threading.Thread(target=work, name="fetch", daemon=True).start()
    either: list[Future[Any]] = [gone, fetched]
    concurrent.futures.wait(either, return_when=concurrent.futures.FIRST_COMPLETED)
    if gone.done():
        raise UnwantedError
    return fetched.result()
