"""A lease: one process holds a name, and the others wait. In a folder it is a locked file, which ends with its process.

`<root>/.leases/3f2a9c1b...` holds "process 4242 on gpu1 since 2026-11-25 02:35:00 UTC".
"""

import contextlib
import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trlm_core.artifacts.errors import StoreError
from trlm_core.artifacts.manifest import now

logger = logging.getLogger(__name__)

LEASES = ".leases"
RUN = "run"  # the name of the hold on a whole store
REMIND_SECONDS = 60.0
JUST_TAKEN = "a process that has just taken it"
POLL_SECONDS = 0.2


class Lease(Protocol):
    @property
    def poll_seconds(self) -> float: ...

    @property
    def holder_lives(self) -> bool:
        """Whether the one who holds it, as the last `take` found, has given a sign of life."""
        ...

    @property
    def is_this_threads(self) -> bool: ...

    def take(self) -> str | None:
        """Try once: None when it is ours now, otherwise who holds it, in words."""
        ...

    def check(self) -> None:
        """Raise LeaseLostError where it is ours no longer."""
        ...

    def release(self) -> None: ...


@dataclass(frozen=True)
class Hold:
    descriptor: int
    thread: int  # the one that holds it


_holds: dict[Path, Hold] = {}  # of this process
_guard = threading.Lock()


class FileLease:
    """A lock on a file. It lasts until it is released and every process that inherited the descriptor has ended."""

    poll_seconds = POLL_SECONDS
    holder_lives = True  # the lock of a dead process is gone

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / LEASES / name

    def take(self) -> str | None:
        """Raises StoreError where it cannot be written: on a full disk, say."""
        try:
            return self._taken()
        except OSError as error:
            where = f"store {self.path.parents[1]}"
            raise StoreError(f"{where}: wanted to hold it, got {error}; mend that, or choose another with --store") from error

    def _taken(self) -> str | None:
        self.path.parent.mkdir(exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with os.fdopen(descriptor) as file:
                return file.read().strip() or JUST_TAKEN
        except OSError:
            os.close(descriptor)
            raise
        self._sign(descriptor)
        with _guard:
            _holds[self.path] = Hold(descriptor, threading.get_ident())
        return None

    def _sign(self, descriptor: int) -> None:
        """What cannot be signed is not kept locked: this process would wait for itself."""
        try:
            os.truncate(descriptor, 0)
            os.write(descriptor, f"{this_holder()}\n".encode())
        except OSError:
            os.close(descriptor)
            raise

    @property
    def is_this_threads(self) -> bool:
        with _guard:
            hold = _holds.get(self.path)
        return hold is not None and hold.thread == threading.get_ident()

    def check(self) -> None:
        return None

    def release(self) -> None:
        # Closed and not unlocked: a training process that inherited it and still writes keeps it.
        with _guard:
            os.close(_holds.pop(self.path).descriptor)


def this_holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {now():%Y-%m-%d %H:%M:%S} UTC"


def descriptors() -> tuple[int, ...]:
    """Descriptors of the leases that this thread holds, for a child process that does their work: the leases then end with it too."""
    with _guard:
        return tuple(hold.descriptor for path, hold in _holds.items() if hold.thread == threading.get_ident() and path.name != RUN)


def _forget() -> None:
    """A forked child (a loader's worker, say) holds nothing; a lock that it inherited would outlive its release."""
    global _guard
    _guard = threading.Lock()
    for hold in _holds.values():
        os.close(hold.descriptor)
    _holds.clear()


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def waited_for(lease: Lease, what: str) -> Iterator[Lease]:
    """Hold the lease, however long another holds it; the log says who does, at once and then a line a minute."""
    _wait(lease, what)
    try:
        yield lease
    finally:
        lease.release()


@contextlib.contextmanager
def tried(lease: Lease) -> Iterator[bool]:
    """Hold the lease if it is free; yields whether it is held."""
    if lease.take() is not None:
        yield False
        return
    try:
        yield True
    finally:
        lease.release()


@contextlib.contextmanager
def held(lease: Lease, where: str) -> Iterator[Lease]:
    """Hold the lease, or raise StoreError that names the living holder. Of one that died the lease is taken over."""
    while (holder := lease.take()) is not None:
        if lease.holder_lives:
            raise StoreError(f"store {where}: wanted it free, got a run that holds it ({holder}); wait or choose another --store")
        time.sleep(lease.poll_seconds)
    try:
        yield lease
    finally:
        lease.release()


def _wait(lease: Lease, what: str) -> None:
    assert not lease.is_this_threads, f"{what}: the thread that builds it would wait for itself"
    told: float | None = None
    while (holder := lease.take()) is not None:
        if told is None or time.monotonic() - told > REMIND_SECONDS:
            logger.info("waiting for %s, held by %s", what, holder)
            told = time.monotonic()
        time.sleep(lease.poll_seconds)
