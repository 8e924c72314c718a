"""The manifest of a finished artifact: what it is, what it was made from, a sha256 for every file, and one of its own fields.

{"kind": "checkpoints", "group": "trlm-135m-local", "name": "stage1_sft", "version": "001-3f2a9c1b77aa", "fingerprint": "3f2a...",
 "identity": {...}, "recipe": {...}, "inputs": {"dataset": "9c0e..."},
 "files": {"model.safetensors": {"sha256": "...", "size": 538090408}}, "seal": "5be1..."}
"""

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from trlm_core.artifacts.errors import StoreError
from trlm_core.artifacts.fingerprint import file_sha256, fingerprint

Kind = Literal["datasets", "checkpoints", "evals", "reports"]
MANIFEST_NAME = "manifest.json"


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size: int  # bytes


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: Kind
    group: str  # the recipe, or "sources" and "bases" for what recipes share
    name: str  # the stage, source or base
    version: str
    fingerprint: str
    identity: dict[str, Any]  # what was hashed
    inputs: dict[str, str]  # role -> fingerprint
    recipe: dict[str, Any]  # the whole recipe that ran; {} for what recipes share
    counts: dict[str, Any]
    git_commit: str | None
    packages: dict[str, str]
    created: datetime
    seconds: float  # what building took
    files: dict[str, FileEntry]
    seal: str = ""  # sha256 of all other fields; empty until it is sealed

    @field_validator("files")
    @classmethod
    def _lie_below_the_folder(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"wanted files below the artifact's folder, got {name!r}")  # a fetch would write there
        return files

    @property
    def address(self) -> str:
        """Path below the store: `checkpoints/trlm-135m-local/stage1_sft/001-3f2a9c1b77aa`."""
        return f"{self.kind}/{self.group}/{self.name}/{self.version}"

    @property
    def text(self) -> str:
        """What manifest.json holds, to the last byte."""
        return self.model_dump_json(indent=1)

    def part(self, names: Iterable[str]) -> "Manifest":
        """Of these files alone; nothing that is kept."""
        return self.model_copy(update={"files": {name: self.files[name] for name in names}})

    def sealed(self) -> "Manifest":
        return self.model_copy(update={"seal": fingerprint(self.model_dump(mode="json", exclude={"seal"}))})

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    @property
    def counts_line(self) -> str:
        """The plain counts in one line: `rows 480, checks_passed 19`."""
        return ", ".join(f"{key} {value:,}" for key, value in self.counts.items() if isinstance(value, int))


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def read_manifest(content: bytes, where: object) -> Manifest:
    """Raises StoreError where that is no manifest."""
    try:
        return Manifest.model_validate(json.loads(content))
    except ValueError as error:
        raise StoreError(f"{where}: wanted a manifest of this version of trlm, got {error}; move that folder away") from error


def file_entries(folder: Path, sha256: Callable[[Path], str] = file_sha256) -> dict[str, FileEntry]:
    """Hash of every file below the folder, by its relative name."""
    files = files_of(folder)
    return {name: FileEntry(sha256=sha256(path), size=path.stat().st_size) for name, path in files.items()}


def files_of(folder: Path) -> dict[str, Path]:
    """Every file below the folder, by its relative name."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def damage(manifest: Manifest, folder: Path, sha256: Callable[[Path], str] = file_sha256) -> list[str]:
    """What differs between the manifest and the folder, in words; empty when every byte is as recorded, its own included."""
    own = folder / MANIFEST_NAME
    return [
        *own_damage(manifest, own.read_bytes()),
        *unlisted(manifest, files_of(folder)),
        *files_damage(manifest, folder, sha256),
    ]


def own_damage(manifest: Manifest, content: bytes) -> list[str]:
    whole = manifest == manifest.sealed() and content == manifest.text.encode()
    return [] if whole else [f"{MANIFEST_NAME}: differs from what was sealed"]


def misplaced(manifest: Manifest, address: str) -> list[str]:
    return [] if manifest.address == address else [f"{MANIFEST_NAME}: address: wanted {address}, got {manifest.address}"]


def unlisted(manifest: Manifest, names: Iterable[str]) -> list[str]:
    return [f"{name}: not in the manifest" for name in sorted({*names} - manifest.files.keys() - {MANIFEST_NAME})]


def files_damage(manifest: Manifest, folder: Path, sha256: Callable[[Path], str] = file_sha256) -> list[str]:
    """Which of the manifest's files differ in the folder: `model.safetensors: wanted 7 bytes, got 6`."""
    reasons = (file_damage(name, folder / name, entry, sha256) for name, entry in manifest.files.items())
    return [reason for reason in reasons if reason]


def file_damage(name: str, path: Path, entry: FileEntry, sha256: Callable[[Path], str] = file_sha256) -> str | None:
    if not path.is_file():
        return f"{name}: missing"
    if path.stat().st_size != entry.size:
        return f"{name}: wanted {entry.size:,} bytes, got {path.stat().st_size:,}"
    if (got := sha256(path)) != entry.sha256:
        return f"{name}: wanted sha256 {entry.sha256[:12]}, got {got[:12]}"
    return None
