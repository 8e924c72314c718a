"""The manifest of a finished artifact: what it is, what it was made from, a sha256 for every file, and one of its own fields.

{"kind": "checkpoints", "group": "trlm-135m-local", "name": "stage1_sft", "version": "001-3f2a9c1b77aa", "fingerprint": "3f2a...",
 "identity": {...}, "recipe": {...}, "inputs": {"dataset": "9c0e..."},
 "files": {"model.safetensors": {"sha256": "...", "size": 538090408}}, "seal": "5be1..."}
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

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

    @property
    def address(self) -> str:
        """Path below the store: `checkpoints/trlm-135m-local/stage1_sft/001-3f2a9c1b77aa`."""
        return f"{self.kind}/{self.group}/{self.name}/{self.version}"

    @property
    def text(self) -> str:
        """What manifest.json holds, to the last byte."""
        return self.model_dump_json(indent=1)

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


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Hash of every file below the folder, by its relative name."""
    return {name: FileEntry(sha256=file_sha256(path), size=path.stat().st_size) for name, path in _files_of(folder).items()}


def _files_of(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def damage(manifest: Manifest, folder: Path) -> list[str]:
    """What differs between the manifest and the folder, in words; empty when every byte is as recorded, its own included."""
    own = [] if manifest == manifest.sealed() and (folder / MANIFEST_NAME).read_text() == manifest.text else [_own_damage(folder)]
    unlisted = sorted(_files_of(folder).keys() - manifest.files.keys() - {MANIFEST_NAME})
    return [
        *own,
        *(f"{folder / name}: not in the manifest" for name in unlisted),
        *(reason for name, entry in manifest.files.items() if (reason := _file_damage(folder / name, entry))),
    ]


def _own_damage(folder: Path) -> str:
    return f"{folder / MANIFEST_NAME}: differs from what was sealed"


def _file_damage(path: Path, entry: FileEntry) -> str | None:
    if not path.is_file():
        return f"{path}: missing"
    if path.stat().st_size != entry.size:
        return f"{path}: wanted {entry.size:,} bytes, got {path.stat().st_size:,}"
    if (got := file_sha256(path)) != entry.sha256:
        return f"{path}: wanted sha256 {entry.sha256[:12]}, got {got[:12]}"
    return None
