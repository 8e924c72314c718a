"""A lease in a bucket: an object that its holder renews; who sees no renewal for its time to live takes the next generation.

`.leases/3f2a9c1b.../00000002`: {"holder": "process 42 on gpu1 ...", "token": "9b1d...", "ttl": 30.0, "renewals": 7, "released": false}
Nobody compares clocks: a holder is dead when its object has stayed the same for `ttl` seconds of the observer's own monotonic clock.
The newest generation is the one that counts and is never deleted: else an old holder that wakes up would find its own to be the newest.
"""

import logging
import os
import threading
import time
import uuid
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trlm_core.artifacts.errors import LeaseLostError, StoreConnectionError, StoreError
from trlm_core.artifacts.lease import JUST_TAKEN, LEASES, FileLease, this_holder
from trlm_core.artifacts.remote import Remote

logger = logging.getLogger(__name__)

TTL_SECONDS = float(os.environ.get("TRLM_LEASE_SECONDS", "30"))
RENEWALS_PER_TTL = 3


class LeaseObject(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    holder: str
    token: str  # of one taking of the lease
    ttl: float  # seconds
    renewals: int = 0
    released: bool = False


class RemoteLease:
    """Held among machines by the object, and among this machine's processes by a file of the cache, which a child can inherit."""

    def __init__(self, remote: Remote, cache: Path, name: str, ttl: float = TTL_SECONDS) -> None:
        self._remote, self._place, self._local = remote, f"{LEASES}/{name}", FileLease(cache, name)
        self._ttl = ttl
        self._observed: tuple[int, LeaseObject, float] | None = None  # generation, object, our clock when we first saw it so
        self._lives = False
        self._holding: Holding | None = None

    @property
    def poll_seconds(self) -> float:
        return min(1.0, self._ttl / 10)

    @property
    def holder_lives(self) -> bool:
        return self._lives

    @property
    def is_this_threads(self) -> bool:
        return self._local.is_this_threads

    def take(self) -> str | None:
        holder = self._local.take()
        if holder is not None:
            self._lives = True
            return holder
        try:
            holder = self._take_object()
        except BaseException:
            self._local.release()
            raise
        if holder is not None:
            self._local.release()
        return holder

    def check(self) -> None:
        assert self._holding is not None, "a lease is checked by its holder"
        self._holding.check()

    def release(self) -> None:
        assert self._holding is not None, "a lease is released by its holder"
        try:
            self._holding.release()
        finally:
            self._holding = None
            self._local.release()

    def _take_object(self) -> str | None:
        generation = newest_generation(self._remote, self._place)
        try:
            current = self._read(generation)
        except FileNotFoundError:  # there is a newer one by now
            return JUST_TAKEN
        if current is not None and not current.released and not self._is_dead(generation, current):
            return current.holder
        mine = LeaseObject(holder=this_holder(), token=uuid.uuid4().hex, ttl=self._ttl)
        began = time.monotonic()
        if not self._create(generation + 1, mine):
            return JUST_TAKEN
        self._holding = Holding(self._remote.impatient, self._place, generation + 1, mine, began)
        return None

    def _read(self, generation: int) -> LeaseObject | None:
        return LeaseObject.model_validate_json(self._remote.read(key_of(self._place, generation))) if generation else None

    def _is_dead(self, generation: int, current: LeaseObject) -> bool:
        if self._observed is not None and self._observed[:2] == (generation, current):
            return time.monotonic() - self._observed[2] > current.ttl
        self._lives = self._observed is not None  # it has changed since we look
        self._observed = (generation, current, time.monotonic())
        return False

    def _create(self, generation: int, mine: LeaseObject) -> bool:
        key = key_of(self._place, generation)
        if self._remote.create(key, mine.model_dump_json().encode()):
            return True
        try:
            theirs = self._read(generation)  # or ours: the answer to a first try can be lost on the way
        except FileNotFoundError:
            return False
        return theirs is not None and theirs.token == mine.token


class Holding:
    """The lease while it is ours: a thread renews it."""

    def __init__(self, remote: Remote, place: str, generation: int, taken: LeaseObject, began: float) -> None:
        self._remote, self._place, self._generation, self._object = remote, place, generation, taken
        self._renewed = began  # our clock, before the last renewal that worked was asked for
        self._superseded = False
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="renew-lease")
        self._thread.start()

    def check(self) -> None:
        """Raises LeaseLostError where another holds it, or may by now: we could not renew for longer than others wait."""
        self._try_to_renew()
        silent = time.monotonic() - self._renewed
        if self._superseded or silent > self._object.ttl:
            why = "another process took it" if self._superseded else f"it could not be renewed for {silent:.0f} s"
            raise LeaseLostError(f"lease {self._remote.address}/{self._place}: wanted to hold it until the end, got none: {why}; run again")

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        if not self._superseded:
            try:
                self._write(released=True)
                self._forget_older()
            except (StoreConnectionError, StoreError) as error:
                logger.warning("%s; the lease ends by itself in %.0f s", error, self._object.ttl)

    def _keep(self) -> None:
        while not self._ended.wait(self._object.ttl / RENEWALS_PER_TTL):
            self._try_to_renew()

    def _try_to_renew(self) -> None:
        try:
            with self._guard:
                self._renew()
        except (StoreConnectionError, StoreError) as error:
            logger.warning("a lease was not renewed: %s", error)  # it may be the next time; `check` tells in the end

    def _renew(self) -> None:
        began = time.monotonic()
        if newest_generation(self._remote, self._place) > self._generation:
            self._superseded = True
            return
        self._write(renewals=self._object.renewals + 1)
        self._renewed = began

    def _write(self, **changes: int | bool) -> None:
        self._object = self._object.model_copy(update=changes)
        self._remote.write(key_of(self._place, self._generation), self._object.model_dump_json().encode())

    def _forget_older(self) -> None:
        older = [key for key in self._remote.sizes(self._place) if int(key.rsplit("/", 1)[-1]) < self._generation]
        self._remote.delete(older)


def newest_generation(remote: Remote, place: str) -> int:
    """0 where nobody ever took it."""
    return max((int(key.rsplit("/", 1)[-1]) for key in remote.sizes(place)), default=0)


def key_of(place: str, generation: int) -> str:
    return f"{place}/{generation:08d}"
