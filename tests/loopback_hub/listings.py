"""What the loopback Hub says of a repository, as JSON values: its info, its tree, some of its paths.

A file in a tree: {"type": "file", "oid": "1c5e...", "size": 96, "path": "SFT/a.parquet", "lfs": {"oid": "9f2b...", "size": 96, ...}}
"""

import fnmatch
from typing import Any

import yaml

from tests.loopback_hub.repositories import Commit, Repository, StoredFile, is_large, pointer

Entry = dict[str, Any]


def info(repository: Repository, commit: Commit, with_blobs: bool) -> Entry:
    return {
        "id": repository.name,
        "author": repository.name.split("/")[0],
        "sha": commit.sha,
        "private": repository.token is not None,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "cardData": _card(commit),
        "lastModified": "2026-01-01T00:00:00.000Z",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "siblings": [_sibling(path, file, with_blobs) for path, file in commit.files.items()],
    }


def tree(commit: Commit, below: str, recursive: bool) -> list[Entry]:
    """Folders first; nothing where there is no such folder or file."""
    prefix = f"{below}/" if below else ""
    inside = {path: file for path, file in commit.files.items() if path.startswith(prefix) or path == below}
    entries = [_folder_entry(path) for path in folders(commit) if path.startswith(prefix)]
    entries += [_file_entry(path, file) for path, file in inside.items()]
    return [entry for entry in entries if recursive or "/" not in entry["path"].removeprefix(prefix) or entry["path"] == below]


def paths_info(commit: Commit, asked: list[str]) -> list[Entry]:
    """Of those that exist."""
    files = [_file_entry(path, commit.files[path]) for path in asked if path in commit.files]
    return files + [_folder_entry(path) for path in folders(commit) if path in asked]


def preupload(commit: Commit, file: Entry) -> Entry:
    """How a file of this path and size is to be sent; the oid spares what is there already."""
    kept = commit.files.get(file["path"])
    return {
        "path": file["path"],
        "uploadMode": "lfs" if is_large(file["path"], file["size"]) else "regular",
        "shouldIgnore": any(fnmatch.fnmatch(file["path"], pattern) for pattern in _ignored(commit)),
        "oid": kept.etag if kept is not None else None,
    }


def folders(commit: Commit) -> list[str]:
    return sorted({path[:place] for path in commit.files for place, letter in enumerate(path) if letter == "/"})


def front_matter(readme: str) -> Any:
    """Raises yaml.YAMLError."""
    return yaml.safe_load(readme.split("\n---", 1)[0]) if readme.startswith("---") else None


def _card(commit: Commit) -> Any:
    readme = commit.files.get("README.md")
    if readme is None:
        return None
    try:
        return front_matter(b"".join(readme.pieces(0, readme.size)).decode())
    except yaml.YAMLError:  # to the Hub a repository with a broken card has none
        return None


def _ignored(commit: Commit) -> list[str]:
    """Patterns of the repository's .gitignore; of git's own ones only those that are plain wildcards."""
    listed = commit.files.get(".gitignore")
    return b"".join(listed.pieces(0, listed.size)).decode().split() if listed is not None else []


def _sibling(path: str, file: StoredFile, with_blobs: bool) -> Entry:
    if not with_blobs:
        return {"rfilename": path}
    lfs = {"lfs": {"sha256": file.sha256, **_sizes(file)}} if file.sha256 is not None else {}
    return {"rfilename": path, "blobId": file.blob, "size": file.size, **lfs}


def _file_entry(path: str, file: StoredFile) -> Entry:
    lfs = {"lfs": {"oid": file.sha256, **_sizes(file)}} if file.sha256 is not None else {}
    return {"type": "file", "oid": file.blob, "size": file.size, "path": path, **lfs}


def _sizes(file: StoredFile) -> Entry:
    assert file.sha256 is not None
    return {"size": file.size, "pointerSize": len(pointer(file.sha256, file.size))}


def _folder_entry(path: str) -> Entry:
    return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
