"""The store: a folder of artifacts, kind/group/name/version, each finished when its manifest.json exists."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trlm_core.artifacts.fingerprint import changed_fields, fingerprint
from trlm_core.artifacts.manifest import MANIFEST_NAME, Kind, Manifest, damage, file_entries, now
from trlm_core.artifacts.provenance import git_commit, package_versions

logger = logging.getLogger(__name__)


class StoreError(ValueError):
    """The store cannot be used as asked; the message says what to do."""


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
    def fingerprint(self) -> str:
        return fingerprint({"identity": self.identity, "inputs": self.inputs})


@dataclass(frozen=True)
class Store:
    root: Path

    @classmethod
    def open(cls, address: str | Path) -> "Store":
        """The store at a folder or `file:` address, created if absent. Raises StoreError where it cannot be written."""
        root = _local_path(str(address))
        try:
            root.mkdir(parents=True, exist_ok=True)
            probe = root / f".writable-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise StoreError(f"store {root}: wanted a folder that can be written, got {error}; choose another with --store") from error
        return cls(root)

    def folder(self, manifest: Manifest) -> Path:
        return self.root / manifest.address

    def manifests(self) -> list[Manifest]:
        """Every finished artifact, in the order of its address."""
        return [read_manifest(path) for path in sorted(self.root.glob(f"*/*/*/*/{MANIFEST_NAME}"))]

    def find(self, spec: Spec) -> Manifest | None:
        """The finished artifact with this fingerprint, every byte checked; None where there is none or it is damaged."""
        for path in sorted(self._place(spec).glob(f"*-{spec.fingerprint[:12]}/{MANIFEST_NAME}")):
            manifest = read_manifest(path)
            reasons = damage(manifest, path.parent)
            if not reasons:
                return manifest
            logger.warning("%s is damaged and is built again: %s", manifest.address, "; ".join(reasons))
            path.unlink()
        return None

    def make(self, spec: Spec, build: Callable[[Path], dict[str, Any]]) -> Manifest:
        """Reuse the artifact with this fingerprint, or build it: `build` fills the folder that it is given and returns the counts."""
        found = self.find(spec)
        if found is not None:
            logger.info("reused %s", found.address)
            return found
        self._log_why(spec)
        folder = self._new_folder(spec)
        started = time.monotonic()
        counts = build(folder)
        return self._finish(spec, folder, counts, time.monotonic() - started)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the store for one run. Raises StoreError that names the holder; the hold ends with the process, however it ends."""
        with (self.root / ".held").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise StoreError(
                    f"store {self.root}: wanted it free, got a run that holds it ({file.read().strip()}); wait or choose another --store"
                ) from error
            file.truncate(0)
            file.write(f"process {os.getpid()} since {now():%Y-%m-%d %H:%M:%S} UTC\n")
            file.flush()
            yield

    def _place(self, spec: Spec) -> Path:
        return self.root / spec.kind / spec.group / spec.name

    def _new_folder(self, spec: Spec) -> Path:
        place = self._place(spec)
        for unfinished in place.glob(f"*-{spec.fingerprint[:12]}"):
            logger.info("%s was left unfinished and is built again", unfinished)
            shutil.rmtree(unfinished)
        last = max((int(path.name.split("-")[0]) for path in place.glob("[0-9][0-9][0-9]-*")), default=0)
        folder = place / f"{last + 1:03d}-{spec.fingerprint[:12]}"
        folder.mkdir(parents=True)
        return folder

    def _finish(self, spec: Spec, folder: Path, counts: dict[str, Any], seconds: float) -> Manifest:
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
            files=file_entries(folder),
        ).sealed()
        _write_last(folder / MANIFEST_NAME, manifest.text)
        logger.info("built %s in %.0f s", manifest.address, seconds)
        return manifest

    def _log_why(self, spec: Spec) -> None:
        paths = sorted(self._place(spec).glob(f"*/{MANIFEST_NAME}"))
        if not paths:
            logger.info("building %s/%s/%s for the first time", spec.kind, spec.group, spec.name)
            return
        last = read_manifest(paths[-1])
        changes = changed_fields({**last.identity, "inputs": last.inputs}, {**spec.identity, "inputs": spec.inputs})
        logger.info("building a new version of %s/%s/%s, changed: %s", spec.kind, spec.group, spec.name, "; ".join(changes))


def _local_path(address: str) -> Path:
    scheme, colon, rest = address.partition(":")
    if not colon or len(scheme) == 1:  # a path, or a Windows drive
        return Path(address).expanduser().resolve()
    if scheme == "file":
        return Path("/" + rest.lstrip("/")).resolve()
    raise StoreError(f"store {address}: wanted a folder or a file: address, got the scheme {scheme!r}")


def read_manifest(path: Path) -> Manifest:
    """Raises StoreError where the file is no manifest."""
    try:
        return Manifest.model_validate(json.loads(path.read_text()))
    except ValueError as error:
        raise StoreError(f"{path}: wanted a manifest of this version of trlm, got {error}; move that folder away") from error


def _write_last(path: Path, text: str) -> None:
    """The manifest appears whole or not at all, and only after the files that it names are on the disk."""
    for file in path.parent.rglob("*"):
        _sync(file)
    aside = path.with_suffix(".tmp")
    aside.write_text(text)
    _sync(aside)
    aside.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
