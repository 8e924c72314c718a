"""A shelf keeps finished artifacts by address, kind/group/name/version; the store asks it and does not know where it is."""

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Protocol, get_args

from trlm_core.artifacts.errors import StoreError
from trlm_core.artifacts.known_hashes import known_sha256
from trlm_core.artifacts.lease import FileLease, Lease
from trlm_core.artifacts.manifest import MANIFEST_NAME, Kind, Manifest, damage, files_damage, misplaced, read_manifest

KINDS = get_args(Kind)
ADDRESS_PARTS = 4


class Shelf(Protocol):
    @property
    def address(self) -> str:
        """What opens the store again."""
        ...

    def finished(self, below: str = "") -> list[str]:
        """Sorted addresses of the finished artifacts at or below an address."""
        ...

    def versions(self, place: str) -> list[str]:
        """Versions at kind/group/name, unfinished ones among them."""
        ...

    def manifest(self, address: str) -> Manifest:
        """Raises StoreError where it cannot be read."""
        ...

    def examined(self, address: str) -> tuple[Manifest, list[str]]:
        """The manifest, and what makes the artifact useless as far as it can be seen without fetching it, in words."""
        ...

    def discard(self, address: str) -> None:
        """Take the manifest away: the artifact is unfinished."""
        ...

    def clear(self, address: str) -> None:
        """Remove what an unfinished build left there."""
        ...

    def folder(self, manifest: Manifest) -> Path:
        """Local folder with every listed file, every byte checked. Raises StoreError."""
        ...

    def part(self, manifest: Manifest, names: Sequence[str]) -> Path:
        """Local folder with these of the listed files, every byte of them checked. Raises StoreError."""
        ...

    def original(self, address: str) -> AbstractContextManager[Path]:
        """Folder with the bytes that the shelf itself holds now."""
        ...

    def publish(self, manifest: Manifest, folder: Path, lease: Lease) -> Manifest:
        """Finish the artifact that lies in the folder; gives the manifest that stands: somebody else's, where he was first."""
        ...

    def lease(self, name: str) -> Lease: ...


class LocalShelf:
    """A folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def address(self) -> str:
        return str(self.root)

    def finished(self, below: str = "") -> list[str]:
        parts = [part for part in below.split("/") if part]
        pattern = "/".join([*parts, *["*"] * (ADDRESS_PARTS - len(parts)), MANIFEST_NAME])
        return finished_among((path.relative_to(self.root).as_posix() for path in self.root.glob(pattern)), below)

    def versions(self, place: str) -> list[str]:
        return sorted(path.name for path in (self.root / place).glob("[0-9][0-9][0-9]-*"))

    def manifest(self, address: str) -> Manifest:
        path = self.root / address / MANIFEST_NAME
        return read_manifest(path.read_bytes(), path)

    def examined(self, address: str) -> tuple[Manifest, list[str]]:
        manifest = self.manifest(address)
        return manifest, [*misplaced(manifest, address), *damage(manifest, self.root / address, known_sha256)]

    def discard(self, address: str) -> None:
        (self.root / address / MANIFEST_NAME).unlink(missing_ok=True)

    def clear(self, address: str) -> None:
        shutil.rmtree(self.root / address)

    def folder(self, manifest: Manifest) -> Path:
        folder = self.root / manifest.address
        reasons = files_damage(manifest, folder, known_sha256)
        if reasons:
            raise StoreError(f"{folder}: wanted it as it was built, got {'; '.join(reasons)}; run the recipe again, which builds it anew")
        return folder

    def part(self, manifest: Manifest, names: Sequence[str]) -> Path:
        return self.folder(manifest.part(names))

    def original(self, address: str) -> AbstractContextManager[Path]:
        return nullcontext(self.root / address)

    def publish(self, manifest: Manifest, folder: Path, lease: Lease) -> Manifest:
        lease.check()
        write_last(folder / MANIFEST_NAME, manifest.text)
        return manifest

    def lease(self, name: str) -> FileLease:
        return FileLease(self.root, name)


def finished_among(keys: Iterable[str], below: str) -> list[str]:
    """Sorted addresses of the artifacts whose manifests are among the keys, at or below an address."""
    manifests = [path for key in keys if (path := PurePosixPath(key)).name == MANIFEST_NAME and len(path.parts) == ADDRESS_PARTS + 1]
    addresses = [path.parent for path in manifests if path.parts[0] in KINDS]
    return sorted(str(address) for address in addresses if address.is_relative_to(below))


def write_last(path: Path, text: str) -> None:
    """The manifest appears whole or not at all, and only after the files that it names are on the disk."""
    for file in path.parent.rglob("*"):
        sync(file)
    aside = path.with_suffix(".tmp")
    aside.write_text(text)
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Return when the file, or the folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
