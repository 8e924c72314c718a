"""What the names among a recipe's revisions mean now: commits of the Hub, hashes of files."""

import fnmatch
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trlm_core.artifacts.fingerprint import fingerprint
from trlm_core.artifacts.known_hashes import known_sha256
from trlm_core.artifacts.remote import Remote
from trlm_core.data.errors import SourceError
from trlm_core.data.hub import SplitFiles, commit_of, split_files
from trlm_core.recipes.lock import Reference, unpinned
from trlm_core.recipes.schema import FileSource, HubSource, Recipe

GLOB = "*?["
READERS = 4  # files that are hashed at once


def resolved(recipe: Recipe) -> dict[str, str]:
    """Pins (key -> revision) for every name among the recipe's revisions. Raises SourceError, SourceConnectionError."""
    return {reference.key: current_revision(reference) for reference in unpinned(recipe)}


def check_pinned(recipe: Recipe) -> None:
    """Raise SourceError where a revision is a name: it would mean something else tomorrow."""
    names = unpinned(recipe)
    if names:
        raise SourceError(
            f"recipe {recipe.name}: wanted commits for revisions, got {len(names)} names ({names[0].key}{', ...' if names[1:] else ''}); "
            "run `trlm recipe lock` once, or let the run follow them (--latest, or upstream: latest)"
        )


def current_revision(reference: Reference) -> str:
    if reference.kind == "files":
        return files_revision(reference.address)
    if Path(reference.address).is_dir():
        return files_revision(f"{reference.address}/**/*")
    return commit_of(reference.address, reference.revision, "model" if reference.kind == "model" else "dataset")


def files_revision(address: str) -> str:
    """Of every file's name and bytes (a folder) or entity tag (a bucket)."""
    return f"sha256:{fingerprint(_tags(address))}"


def files_of(source: HubSource | FileSource) -> SplitFiles:
    """The files of a pinned source. Raises SourceError where files are no longer what was pinned, or there are none."""
    local = isinstance(source, FileSource) or Path(source.repo).is_dir()
    if local:
        address = source.address if isinstance(source, FileSource) else f"{source.repo}/**/*"
        if (now := files_revision(address)) != source.revision:
            raise SourceError(f"{source.name}: wanted {address} as pinned, {source.revision[:19]}, got {now[:19]}: lock the recipe again")
    if isinstance(source, HubSource):
        return split_files(source.repo, source.subset, source.split, source.revision)
    return SplitFiles(tuple(_listed(source.address)), source.format)


def _tags(address: str) -> dict[str, str]:
    """Name below the pattern's fixed part -> what changes with the bytes."""
    if address.startswith("s3://"):
        folder, pattern = _split(address)
        found = {key: tag for key, tag in sorted(Remote(folder).tags().items()) if fnmatch.fnmatch(key, pattern)}
        if not found:
            raise SourceError(f"files {address}: wanted files, got none there")
        return found
    folder = Path(_split(address)[0])
    paths = _local(address)
    with ThreadPoolExecutor(READERS) as threads:
        return {path.relative_to(folder).as_posix(): digest for path, digest in zip(paths, threads.map(known_sha256, paths), strict=True)}


def _listed(address: str) -> list[str]:
    if address.startswith("s3://"):
        return [f"{_split(address)[0]}/{key}" for key in _tags(address)]
    return [str(path) for path in _local(address)]


def _local(address: str) -> list[Path]:
    """Files that the pattern names, hidden ones apart."""
    folder, pattern = _split(address)
    found = sorted(path for path in Path(folder).glob(pattern) if path.is_file() and not path.name.startswith("."))
    if not found:
        raise SourceError(f"files {address}: wanted files, got none there")
    return found


def _split(address: str) -> tuple[str, str]:
    """The fixed folder of a pattern, and the rest."""
    parts = address.split("/")
    fixed = next((number for number, part in enumerate(parts) if any(sign in part for sign in GLOB)), len(parts) - 1)
    return "/".join(parts[:fixed]) or ("/" if address.startswith("/") else "."), "/".join(parts[fixed:])
