"""Repositories of the loopback Hub: an ordered history of commits, each a mapping of paths to files.

A file's bytes lie in memory or on the disk; on the disk they must stay as they were when they were committed.
"""

import hashlib
import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

Content = bytes | Path
BRANCH = "main"
REGULAR_BYTES = 1 << 20  # larger files are LFS files
LARGE_SUFFIXES = (".parquet", ".safetensors")  # at any size: .gitattributes
PIECE = 64 << 10


@dataclass(frozen=True)
class StoredFile:
    content: Content
    size: int
    blob: str  # git's name of the bytes, or of an LFS file's pointer
    sha256: str | None  # of an LFS file

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob

    def opened(self) -> BinaryIO:
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        with closing(self.opened()) as file:
            file.seek(start)
            for place in range(start, end, PIECE):
                yield file.read(min(PIECE, end - place))


@dataclass(frozen=True)
class Commit:
    sha: str
    files: dict[str, StoredFile]
    message: str = ""


@dataclass
class Repository:
    name: str  # owner/name
    kind: str  # dataset or model
    commits: list[Commit] = field(default_factory=list)
    token: str | None = None  # that a reader must show
    guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def head(self) -> Commit:
        return self.commits[-1] if self.commits else Commit("0" * 40, {})

    def commit(self, changes: Mapping[str, Content | None], message: str = "") -> str:
        """A new commit on main: files added, changed, or taken away (None); its 40 hexadecimal digits."""
        stored = {path: stored_file(path, content) for path, content in changes.items() if content is not None}
        with self.guard:
            kept = {path: file for path, file in self.head.files.items() if path not in changes}
            files = dict(sorted({**kept, **stored}.items()))
            told = f"{self.name} {len(self.commits)} {[(path, file.blob) for path, file in files.items()]}"
            self.commits.append(Commit(hashlib.sha1(told.encode()).hexdigest(), files, message))
            return self.head.sha

    def at(self, revision: str) -> Commit | None:
        if revision == BRANCH:
            return self.head if self.commits else None
        return next((commit for commit in self.commits if commit.sha == revision), None)


class Repositories:
    def __init__(self) -> None:
        self._every: dict[tuple[str, str], Repository] = {}
        self._guard = threading.Lock()

    def get(self, name: str, kind: str = "dataset") -> Repository | None:
        return self._every.get((kind, name))

    def made(self, name: str, kind: str = "dataset") -> Repository:
        """The repository of that name, new if there was none."""
        with self._guard:
            return self._every.setdefault((kind, name), Repository(name, kind))

    def add_folder(self, name: str, folder: Path, kind: str = "dataset") -> Repository:
        """One commit with every file of the folder, served from where it lies."""
        repository = self.made(name, kind)
        repository.commit({path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()})
        return repository

    def tokens(self) -> set[str]:
        with self._guard:
            return {repository.token for repository in self._every.values() if repository.token is not None}


def is_large(path: str, size: int) -> bool:
    """Whether a file of this path and size is an LFS file."""
    return size > REGULAR_BYTES or path.endswith(LARGE_SUFFIXES)


def stored_file(path: str, content: Content) -> StoredFile:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if not is_large(path, size):
        return StoredFile(content, size, blob_of(content if isinstance(content, bytes) else content.read_bytes()), None)
    sha256 = _sha256_of(content)
    return StoredFile(content, size, blob_of(pointer(sha256, size)), sha256)


def pointer(sha256: str, size: int) -> bytes:
    """What git keeps of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def blob_of(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256_of(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
