"""The store: artifacts by address, kind/group/name/version, each finished when its manifest.json exists; in a folder or in a bucket."""

import functools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trlm_core.artifacts.errors import StoreError
from trlm_core.artifacts.fingerprint import changed_fields, fingerprint
from trlm_core.artifacts.full_disk import is_full_disk, with_room
from trlm_core.artifacts.known_hashes import new_sha256
from trlm_core.artifacts.lease import RUN, Lease, held, tried, waited_for
from trlm_core.artifacts.manifest import Kind, Manifest, file_entries, now
from trlm_core.artifacts.provenance import git_commit, package_versions
from trlm_core.artifacts.remote import Remote, endpoint
from trlm_core.artifacts.remote_shelf import RemoteShelf, cache_folder
from trlm_core.artifacts.shelf import LocalShelf, Shelf

logger = logging.getLogger(__name__)

READERS = 8  # of manifests at once
WORKSPACES = ".unfinished"


@dataclass(frozen=True)
class Spec:
    """An artifact before it is built: where it goes and what makes its fingerprint."""

    kind: Kind
    group: str
    name: str
    identity: dict[str, Any]
    inputs: dict[str, str]  # role -> fingerprint; part of the fingerprint
    recipe: dict[str, Any] = field(default_factory=dict)  # the whole recipe, for the record only

    @property
    def place(self) -> str:
        return f"{self.kind}/{self.group}/{self.name}"

    @property
    def fingerprint(self) -> str:
        return fingerprint({"identity": self.identity, "inputs": self.inputs})


@dataclass(frozen=True)
class Store:
    root: Path  # the local folder: of a remote store, its cache
    remote: Remote | None = None

    @classmethod
    def open(cls, address: str | Path) -> "Store":
        """The store at a folder, a `file:` or an `s3:` address. Raises StoreError where it cannot be written."""
        remote, root = _places(str(address))
        if remote is not None:
            remote = opened_remote(remote.address, endpoint(), os.environ.get("AWS_ACCESS_KEY_ID"), os.getpid())
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):  # without a name: a kill leaves nothing
                pass
        except OSError as error:
            raise StoreError(f"store {root}: wanted a folder that can be written, got {error}; {_elsewhere(remote)}") from error
        return cls(root, remote)

    @staticmethod
    def exists(address: str | Path) -> bool:
        """Whether there is a folder, or anything below the prefix; makes nothing. Raises StoreError where that cannot be known."""
        remote, root = _places(str(address))
        return root.is_dir() if remote is None else remote.holds_anything()

    @property
    def address(self) -> str:
        """What opens this store again, from any working directory."""
        return self._shelf.address

    def folder(self, manifest: Manifest) -> Path:
        """Local folder of the artifact, fetched where it is remote, every byte checked. Raises StoreError where it is damaged."""
        return with_room(lambda: self._shelf.folder(manifest), manifest.address, self.root, _elsewhere(self.remote))

    def part(self, manifest: Manifest, names: Sequence[str]) -> Path:
        """Local folder in which these files of the artifact lie, every byte of them checked; of a remote one, they alone are fetched."""
        return with_room(lambda: self._shelf.part(manifest, names), manifest.address, self.root, _elsewhere(self.remote))

    def location(self, manifest: Manifest) -> str:
        """Where the artifact is, to be shown: a folder or an s3:// address. Fetches nothing."""
        return f"{self.address}/{manifest.address}"

    def original(self, address: str) -> AbstractContextManager[Path]:
        """A folder with the artifact's bytes as the store holds them now, never those of a cache."""
        return self._shelf.original(address)

    def finished(self, below: str = "") -> list[str]:
        """Addresses of the finished artifacts at or below an address, whatever their state."""
        return self._shelf.finished(below)

    def manifests(self) -> list[Manifest]:
        """Every finished artifact, in the order of its address."""
        return self.manifests_at(self.finished())

    def manifests_at(self, addresses: Sequence[str]) -> list[Manifest]:
        """Raises StoreError where one cannot be read."""
        with ThreadPoolExecutor(READERS) as threads:
            return [*threads.map(self._shelf.manifest, addresses)]

    def find(self, spec: Spec) -> Manifest | None:
        """The finished artifact with this fingerprint; None where there is none or it is damaged.

        In a folder every byte is checked, in a bucket every file's size: the bytes follow when they are fetched.
        """
        for address in self._finished(spec):
            try:
                manifest, reasons = self._shelf.examined(address)
            except FileNotFoundError:  # the holder of its lease has just discarded it
                continue
            if not reasons:
                return manifest
            named = "; ".join(f"{self.address}/{address}/{reason}" for reason in reasons)
            logger.warning("%s is damaged and is built again: %s", address, named)
            with tried(self._shelf.lease(spec.fingerprint)) as free:
                if free:
                    self._kept(spec)
        return None

    def make(self, spec: Spec, build: Callable[[Path], dict[str, Any]]) -> Manifest:
        """Reuse the artifact with this fingerprint, or build it: `build` fills the folder that it is given and returns the counts.

        Never built twice at once, by processes or machines: who comes second waits and reuses.
        Raises FullDiskError; the folder is gone then.
        """
        found = self.find(spec)
        if found is None:
            return with_room(lambda: self._made(spec, build), spec.place, self.root, _elsewhere(self.remote))
        self._clear_workspace(spec)  # of one who came too late to build
        logger.info("reused %s", found.address)
        return found

    def workspace(self, spec: Spec) -> Path:
        """A local folder of the spec's own: what its builder leaves there outlives it, for the next to go on from, until it is finished."""
        folder = self._workspace(spec)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def held(self) -> AbstractContextManager[Lease]:
        """Hold the store for one run. Raises StoreError that names the holder; the hold ends with the process, however it ends."""
        return held(self._shelf.lease(RUN), self.address)

    @property
    def _shelf(self) -> Shelf:
        return LocalShelf(self.root) if self.remote is None else RemoteShelf(self.remote, self.root)

    def _workspace(self, spec: Spec) -> Path:
        return self.root / WORKSPACES / spec.fingerprint

    def _clear_workspace(self, spec: Spec) -> None:
        shutil.rmtree(self._workspace(spec), ignore_errors=True)  # what cannot be removed is in nobody's way

    def _finished(self, spec: Spec) -> list[str]:
        return [address for address in self.finished(spec.place) if address.endswith(f"-{spec.fingerprint[:12]}")]

    def _kept(self, spec: Spec) -> Manifest | None:
        """The whole artifact of this spec; damaged ones become unfinished. For the holder of its lease."""
        for address in self._finished(spec):
            manifest, reasons = self._shelf.examined(address)
            if not reasons:
                return manifest
            self._shelf.discard(address)
        return None

    def _made(self, spec: Spec, build: Callable[[Path], dict[str, Any]]) -> Manifest:
        with waited_for(self._shelf.lease(spec.fingerprint), f"{spec.place} {spec.fingerprint[:12]}") as lease:
            found = self._kept(spec)  # what another finished while we waited
            if found is None:
                return self._built(spec, build, lease)
        logger.info("reused %s", found.address)
        return found

    def _built(self, spec: Spec, build: Callable[[Path], dict[str, Any]], lease: Lease) -> Manifest:
        self._log_why(spec)
        folder = self._new_folder(spec)
        started = time.monotonic()
        try:
            counts = build(folder)
            manifest = self._finish(spec, folder, counts, time.monotonic() - started, lease)
            self._clear_workspace(spec)
            return manifest
        except Exception as error:
            if is_full_disk(error):
                shutil.rmtree(folder)
            raise

    def _new_folder(self, spec: Spec) -> Path:
        versions = self._shelf.versions(spec.place)
        unfinished = [version for version in versions if version.endswith(f"-{spec.fingerprint[:12]}")]
        for version in unfinished:
            logger.info("%s/%s was left unfinished and is built again", spec.place, version)
            self._shelf.clear(f"{spec.place}/{version}")
        last = max((int(version.split("-")[0]) for version in versions if version not in unfinished), default=0)
        folder = self.root / spec.place / f"{last + 1:03d}-{spec.fingerprint[:12]}"
        folder.mkdir(parents=True)
        return folder

    def _finish(self, spec: Spec, folder: Path, counts: dict[str, Any], seconds: float, lease: Lease) -> Manifest:
        manifest = Manifest(
            kind=spec.kind,
            group=spec.group,
            name=spec.name,
            version=folder.name,
            fingerprint=spec.fingerprint,
            identity=spec.identity,
            inputs=spec.inputs,
            recipe=spec.recipe,
            counts=counts,
            git_commit=git_commit(),
            packages=package_versions(),
            created=now(),
            seconds=round(seconds, 3),
            files=file_entries(folder, new_sha256),
        ).sealed()
        logger.info("built %s in %.0f s", manifest.address, seconds)
        return self._shelf.publish(manifest, folder, lease)

    def _log_why(self, spec: Spec) -> None:
        addresses = self.finished(spec.place)
        if not addresses:
            logger.info("building %s for the first time", spec.place)
            return
        last = self._shelf.manifest(addresses[-1])
        changes = changed_fields({**last.identity, "inputs": last.inputs}, {**spec.identity, "inputs": spec.inputs})
        logger.info("building a new version of %s, changed: %s", spec.place, "; ".join(changes))


def _places(address: str) -> tuple[Remote | None, Path]:
    """The bucket's prefix, if it is one, and the local folder."""
    scheme, colon, rest = address.partition(":")
    if not colon or len(scheme) == 1:  # a path, or a Windows drive
        return None, Path(address).expanduser().resolve()
    if scheme == "file":
        return None, Path("/" + rest.lstrip("/")).resolve()
    if scheme == "s3":
        remote = Remote(address)
        return remote, cache_folder(remote)
    raise StoreError(f"store {address}: wanted a folder, a file: or an s3: address, got the scheme {scheme!r}")


def _elsewhere(remote: Remote | None) -> str:
    """What to do where the local folder does not serve."""
    return "choose another with --store" if remote is None else "choose another with TRLM_CACHE"


@functools.cache
def opened_remote(address: str, endpoint: str | None, key: str | None, process: int) -> Remote:
    """Checked and connected once a process, however many tasks open the store. The arguments are what tells two connections apart."""
    remote = Remote(address)
    remote.impatient.check()
    return remote
