"""A shelf in a bucket, read and built through a local cache. The manifest is the last object of an artifact, created once."""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trlm_core.artifacts.errors import LeaseLostError, StoreError
from trlm_core.artifacts.known_hashes import known_sha256
from trlm_core.artifacts.lease import FileLease, Lease, waited_for
from trlm_core.artifacts.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    file_damage,
    files_damage,
    misplaced,
    own_damage,
    read_manifest,
    unlisted,
)
from trlm_core.artifacts.remote import Remote
from trlm_core.artifacts.remote_lease import RemoteLease
from trlm_core.artifacts.shelf import finished_among

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "TRLM_CACHE"
FETCHED = ".fetched"  # files on their way into the cache
AT_ONCE = 4


class RemoteShelf:
    def __init__(self, remote: Remote, cache: Path) -> None:
        self.remote, self.cache = remote, cache

    @property
    def address(self) -> str:
        return self.remote.address

    def finished(self, below: str = "") -> list[str]:
        return finished_among(self.remote.sizes(below), below)

    def versions(self, place: str) -> list[str]:
        there = {key.removeprefix(f"{place}/").split("/")[0] for key in self.remote.sizes(place)}
        return sorted(there | {path.name for path in (self.cache / place).glob("[0-9][0-9][0-9]-*")})

    def manifest(self, address: str) -> Manifest:
        return read_manifest(self._content(address), self._where(address))

    def examined(self, address: str) -> tuple[Manifest, list[str]]:
        """Missing, added or short objects; a changed byte is found by `folder`, which reads it."""
        content = self._content(address)
        manifest = read_manifest(content, self._where(address))
        sizes = {key.removeprefix(f"{address}/"): size for key, size in self.remote.sizes(address).items()}
        reasons = [*misplaced(manifest, address), *own_damage(manifest, content), *unlisted(manifest, sizes), *wrong_sizes(manifest, sizes)]
        return manifest, reasons

    def discard(self, address: str) -> None:
        self.remote.delete([f"{address}/{MANIFEST_NAME}"])

    def clear(self, address: str) -> None:
        self.remote.delete(self.remote.sizes(address))
        shutil.rmtree(self.cache / address, ignore_errors=True)

    def folder(self, manifest: Manifest) -> Path:
        folder = self.cache / manifest.address
        if self._is_cached(manifest):
            return folder
        with waited_for(FileLease(self.cache, manifest.fingerprint), manifest.address):
            if not self._is_cached(manifest):
                self._fetch(manifest, folder)
        return folder

    def part(self, manifest: Manifest, names: Sequence[str]) -> Path:
        part, folder = manifest.part(names), self.cache / manifest.address
        if files_damage(part, folder, known_sha256):
            with waited_for(FileLease(self.cache, manifest.fingerprint), manifest.address):
                self._fetch_files(part, folder)
        return folder

    @contextlib.contextmanager
    def original(self, address: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.cache, prefix=".verified-") as scratch:
            for key in self.remote.sizes(address):
                self.remote.download(key, Path(scratch) / key)
            yield Path(scratch) / address

    def publish(self, manifest: Manifest, folder: Path, lease: Lease) -> Manifest:
        address = manifest.address
        with ThreadPoolExecutor(AT_ONCE) as threads:
            sent = threads.map(lambda item: self._send(folder / item[0], f"{address}/{item[0]}", item[1], lease), manifest.files.items())
            alone = all(sent)
        lease.check()
        if alone and self._create_manifest(manifest):
            (folder / MANIFEST_NAME).write_text(manifest.text)
            return manifest
        return self._theirs(address, folder)

    def lease(self, name: str) -> RemoteLease:
        return RemoteLease(self.remote, self.cache, name)

    def _content(self, address: str) -> bytes:
        return self.remote.read(f"{address}/{MANIFEST_NAME}")

    def _where(self, address: str) -> str:
        return f"{self.address}/{address}/{MANIFEST_NAME}"

    def _is_cached(self, manifest: Manifest) -> bool:
        folder = self.cache / manifest.address
        own = folder / MANIFEST_NAME
        return own.is_file() and own.read_bytes() == manifest.text.encode() and not files_damage(manifest, folder, known_sha256)

    def _fetch(self, manifest: Manifest, folder: Path) -> None:
        self._fetch_files(manifest, folder)
        (folder / MANIFEST_NAME).write_text(manifest.text)

    def _fetch_files(self, manifest: Manifest, folder: Path) -> None:
        aside = self.cache / FETCHED / manifest.fingerprint
        shutil.rmtree(aside, ignore_errors=True)  # of a fetch that was killed
        for name, entry in manifest.files.items():
            if file_damage(name, folder / name, entry, known_sha256) is not None:
                self._fetch_file(manifest, name, entry, aside / name)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).replace(folder / name)
        shutil.rmtree(aside, ignore_errors=True)

    def _fetch_file(self, manifest: Manifest, name: str, entry: FileEntry, aside: Path) -> None:
        key = f"{manifest.address}/{name}"
        logger.info("fetching %s/%s, %.1f MiB", self.address, key, entry.size / 2**20)
        try:
            self.remote.download(key, aside)
        except FileNotFoundError:
            reason = f"{name}: missing"
        else:
            reason = file_damage(name, aside, entry)
        if reason:
            raise StoreError(
                f"{self.address}/{manifest.address}/{reason}; remove its {MANIFEST_NAME} and run the recipe again, which builds it anew"
            )

    def _send(self, path: Path, key: str, entry: FileEntry, lease: Lease) -> bool:
        lease.check()
        return self.remote.upload(path, key, entry.sha256)

    def _create_manifest(self, manifest: Manifest) -> bool:
        created = self.remote.create(f"{manifest.address}/{MANIFEST_NAME}", manifest.text.encode())
        return created or self._content(manifest.address) == manifest.text.encode()  # the answer to a first try can be lost on the way

    def _theirs(self, address: str, folder: Path) -> Manifest:
        try:
            theirs = self.manifest(address)
        except FileNotFoundError as error:
            raise LeaseLostError(f"{self.address}/{address}: wanted to build it alone, got files of another process; run again") from error
        logger.info("%s was finished by another process meanwhile: its artifact is taken", address)
        shutil.rmtree(folder)
        return theirs


def wrong_sizes(manifest: Manifest, sizes: Mapping[str, int]) -> list[str]:
    return [
        f"{name}: wanted {entry.size:,} bytes, got {f'{sizes[name]:,}' if name in sizes else 'none'}"
        for name, entry in manifest.files.items()
        if sizes.get(name) != entry.size
    ]


def cache_folder(remote: Remote) -> Path:
    """Where this machine keeps what it reads from there: one folder an address and endpoint, below $TRLM_CACHE."""
    below = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/trlm").expanduser().resolve()
    whole = hashlib.sha256(f"{remote.endpoint} {remote.address}".encode()).hexdigest()
    return below / f"{remote.bucket}-{whole[:12]}"
