"""The sha256 of files as this process has read them: a file is read again when its size, its times or its inode differ."""

import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from trlm_core.artifacts.fingerprint import file_sha256

SETTLED_NS = 20_000_000  # a file changed twice within one tick of the kernel's clock (10 ms at most) has the same times after both


@dataclass(frozen=True)
class Stamp:
    size: int
    modified: int  # ns
    changed: int  # ns
    inode: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)

    def is_settled(self, at: int) -> bool:
        return at - max(self.modified, self.changed) > SETTLED_NS


_known: dict[Path, tuple[Stamp, str]] = {}
_turns: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
_guard = threading.Lock()


def known_sha256(path: Path) -> str:
    """Hex sha256 of the file, read only where this process has not read it as it is now. Who asks while it is read waits and then knows."""
    with _guard:
        turn = _turns[path]
    with turn:
        return _sha256(path)


def new_sha256(path: Path) -> str:
    """The same of a file that has just been written: once the tick of its last change is over, what is read now is known from then on."""
    if not Stamp.of(path).is_settled(time.time_ns()):
        time.sleep(SETTLED_NS / 1e9)
    return known_sha256(path)


def _sha256(path: Path) -> str:
    began, stamp = time.time_ns(), Stamp.of(path)
    with _guard:
        known = _known.get(path)
    if known is not None and known[0] == stamp:
        return known[1]
    digest = file_sha256(path)
    if stamp.is_settled(began) and Stamp.of(path) == stamp:
        with _guard:
            _known[path] = (stamp, digest)
    return digest
