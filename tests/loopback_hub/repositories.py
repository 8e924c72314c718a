"""Repositories of the loopback Hub: an ordered history of commits, each a mapping of paths to bytes or to files on the disk."""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Content = bytes | Path
BRANCH = "main"
REGULAR_BYTES = 1 << 20  # larger files are LFS files


@dataclass(frozen=True)
class Commit:
    sha: str
    files: dict[str, Content]


@dataclass
class Repository:
    name: str
    kind: str  # dataset or model
    commits: list[Commit] = field(default_factory=list)
    token: str | None = None  # that a reader must show

    def commit(self, changes: Mapping[str, Content | None]) -> str:
        """A new commit on main: files added, changed, or taken away (None); its 40 hexadecimal digits."""
        before = self.commits[-1].files if self.commits else {}
        files = {path: content for path, content in {**before, **changes}.items() if content is not None}
        told = f"{self.name}/{len(self.commits)}/{sorted((path, blob_id(content)) for path, content in files.items())}"
        self.commits.append(Commit(hashlib.sha1(told.encode()).hexdigest(), files))
        return self.commits[-1].sha

    def at(self, revision: str) -> Commit | None:
        if revision == BRANCH:
            return self.commits[-1] if self.commits else None
        return next((commit for commit in self.commits if commit.sha == revision), None)


class Repositories:
    def __init__(self) -> None:
        self._every: dict[tuple[str, str], Repository] = {}
        self._guard = threading.Lock()

    def get(self, name: str, kind: str = "dataset") -> Repository | None:
        return self._every.get((kind, name))

    def made(self, name: str, kind: str = "dataset") -> Repository:
        with self._guard:
            return self._every.setdefault((kind, name), Repository(name, kind))

    def add_folder(self, name: str, folder: Path, kind: str = "dataset") -> Repository:
        """One commit with every file of the folder, served from where it lies."""
        repository = self.made(name, kind)
        repository.commit({path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()})
        return repository


def size_of(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def read_range(content: Content, start: int, end: int) -> bytes:
    if isinstance(content, bytes):
        return content[start:end]
    with content.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def is_large(content: Content) -> bool:
    return size_of(content) > REGULAR_BYTES


def blob_id(content: Content) -> str:
    """Git's name of a regular file's bytes; of a file on the disk, of its path and size."""
    if isinstance(content, Path):
        return hashlib.sha1(f"{content} {content.stat().st_size}".encode()).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256_of(content: Content) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.read_bytes()).hexdigest()
