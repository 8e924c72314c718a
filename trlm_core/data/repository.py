"""A repository of the Hub that we write: may we, what is there, what differs, one commit on it, and that commit read back.

Blends go to dataset repositories and checkpoints to model repositories by the same steps. Whatever else a repository holds stays.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trlm_core.artifacts.errors import first_line
from trlm_core.artifacts.manifest import FileEntry
from trlm_core.data.errors import PublishConnectionError, PublishError
from trlm_core.data.hub import RepoKind, bound_waits

Result = TypeVar("Result")
CARD = "README.md"
TAG = "trlm"  # of every card of ours
TOKEN = re.compile(r"[!-~]+")  # what a header takes: of another the clients say that a codec failed, or quote it whole


@dataclass(frozen=True)
class Kind:
    """What a repository is for."""

    repo_kind: RepoKind
    noun: str  # of what we publish
    content: str  # its files, of ours or of others
    ours: re.Pattern[str]  # names of what we publish now, or did before: the latter leave
    suffixes: tuple[str, ...]  # of anybody's content: their card is not ours to replace


@dataclass(frozen=True)
class LocalFile:
    content: Path | bytes
    sha256: str
    size: int

    @classmethod
    def of_bytes(cls, content: bytes) -> "LocalFile":
        return cls(content, hashlib.sha256(content).hexdigest(), len(content))

    @classmethod
    def of_entry(cls, path: Path, entry: FileEntry) -> "LocalFile":
        return cls(path, entry.sha256, entry.size)

    @property
    def git_blob(self) -> str:
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Publication:
    repo: str
    commit: str
    url: str  # of the commit
    is_new: bool  # False: the repository had it already


@dataclass(frozen=True)
class Repository:
    """Opened by `opened`: one that we may write."""

    name: str
    kind: Kind
    api: Any

    def found(self, files: Mapping[str, LocalFile]) -> Publication | None:
        """The commit at which the repository has these files and none that was ours before; None where it is not so."""
        there = self._listed()
        return None if any(self._changes(files, there)) else self._publication(there.sha, is_new=False)

    def brought_to(self, files: Mapping[str, LocalFile], message: str) -> Publication:
        """These files in one commit on what is there now, or in none where all is there already.

        The commit is read back: a .gitignore there would leave files out. Raises PublishError, PublishConnectionError.
        """
        there = self._listed()
        added, gone = self._changes(files, there)
        if not added and not gone:
            return self._publication(there.sha, is_new=False)
        commit = self._committed({name: files[name] for name in added}, gone, message, there.sha)
        missing, left = self._changes(files, self._listed(commit))
        if wrong := ", ".join(missing + left):
            raise PublishError(
                f"{self.name}: wanted this {self.kind.noun}'s files in commit {commit}, got others for {wrong}; is there a .gitignore?"
            )
        return self._publication(commit, is_new=True)

    def _listed(self, commit: str | None = None) -> "_There":
        """Raises PublishError where content of others lies there: under a card that is none of ours."""
        asked: dict[str, Any] = {"repo_type": self.kind.repo_kind, "revision": commit, "files_metadata": True}
        info = _asked(lambda: self.api.repo_info(self.name, **asked), self.name)
        files = {each.rfilename: each for each in info.siblings or []}
        tags = (info.card_data.to_dict() if info.card_data else {}).get("tags") or []
        foreign = [path for path in files if self.kind.ours.fullmatch(path) or path.endswith(self.kind.suffixes)]
        if foreign and TAG not in ([tags] if isinstance(tags, str) else tags):
            raise PublishError(
                f"{self.name}: wanted no {self.kind.content} but a {self.kind.noun}'s, got {foreign[0]} and no tag {TAG} on the card; "
                "choose another repository"
            )
        return _There(info.sha, files)

    def _changes(self, files: Mapping[str, LocalFile], there: "_There") -> tuple[list[str], list[str]]:
        """Which files have to be sent, and which to be taken away."""
        added = [name for name, file in files.items() if not _is_same(there.files.get(name), file)]
        return added, [path for path in there.files if self.kind.ours.fullmatch(path) and path not in files]

    def _committed(self, added: Mapping[str, LocalFile], gone: list[str], message: str, parent: str) -> str:
        """The new commit. Raises PublishConnectionError where another came after the parent."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        changes = [
            *(CommitOperationAdd(name, file.content) for name, file in added.items()),
            *(CommitOperationDelete(name) for name in gone),
        ]
        asked: dict[str, Any] = {"commit_message": message, "repo_type": self.kind.repo_kind, "parent_commit": parent}
        return _asked(lambda: self.api.create_commit(self.name, changes, **asked), self.name).oid

    def _publication(self, commit: str, *, is_new: bool) -> Publication:
        place = "datasets/" if self.kind.repo_kind == "dataset" else ""
        return Publication(self.name, commit, f"{self.api.endpoint}/{place}{self.name}/commit/{commit}", is_new)


@dataclass(frozen=True)
class _There:
    """What a repository holds at a commit."""

    sha: str
    files: dict[str, Any]  # path -> size, blob_id (of git), lfs.sha256


def opened(name: str, kind: Kind) -> Repository:
    """The repository, made private where there is none. Raises PublishError where we may not write it, PublishConnectionError."""
    repository, repo_type = Repository(name, kind, _api(name, kind.repo_kind)), kind.repo_kind
    _asked(lambda: repository.api.create_repo(name, repo_type=repo_type, private=True, exist_ok=True), name)
    _asked(lambda: repository.api.auth_check(name, repo_type=repo_type, write=True), name)
    return repository


def check_repository(name: str, kind: Kind) -> None:
    """Before any work: we may write it, and no content of others lies there. Raises PublishError, PublishConnectionError."""
    opened(name, kind)._listed()


def _is_same(there: Any | None, file: LocalFile) -> bool:
    if there is None or there.size != file.size:
        return False
    return there.lfs.sha256 == file.sha256 if there.lfs else there.blob_id == file.git_blob


def _api(repo: str, kind: RepoKind) -> Any:
    """The Hub's client. Raises PublishError where the name or the token can be none."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PublishError(f"publish: wanted owner/name of a {kind} repository, got {repo!r}: {first_line(error)}") from error
    if "/" not in repo:
        raise PublishError(f"publish: wanted owner/name of a {kind} repository, got {repo!r}")
    token = get_token()
    if token is None or not TOKEN.fullmatch(token):
        got = "none" if token is None else "characters that no token has"
        raise PublishError(f"{repo}: wanted a token that may write it, got {got}; set HF_TOKEN")
    bound_waits()
    return HfApi(token=token)


def _asked(call: Callable[[], Result], repo: str) -> Result:
    """The clients' many errors as our two. None of ours quotes a token."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return call()
    except OfflineModeIsEnabled as error:
        raise PublishError(f"{repo}: wanted the Hub, got HF_HUB_OFFLINE set; unset it") from error
    except HfHubHTTPError as error:
        raise _meant(error, repo) from error
    except (httpx2.TransportError, ConnectionError, json.JSONDecodeError) as error:  # the last: a gateway's page
        raise PublishConnectionError(f"{repo}: wanted an answer of the Hub, got {type(error).__name__}; publish again") from error
    except RuntimeError as error:  # one file's upload, whatever stopped it
        raise PublishConnectionError(f"{repo}: {first_line(error)} {type(error.__cause__).__name__}; publish again") from error
    except ValueError as error:  # the card's metadata, a file too large
        raise PublishError(f"{repo}: {' '.join(str(error).split())}") from error


def _meant(error: Any, repo: str) -> PublishError | PublishConnectionError:
    status = error.response.status_code
    if status in {401, 403}:
        return PublishError(
            f"{repo}: wanted a token that may write it, the Hub says {status}; set HF_TOKEN to one, or name another repository"
        )
    if status == 412:
        return PublishConnectionError(f"{repo}: wanted to build on its last commit, got another one meanwhile; publish again")
    if status in {408, 429} or status >= 500:
        return PublishConnectionError(f"{repo}: wanted an answer of the Hub, got {status}; publish again")
    return PublishError(f"{repo}: the Hub refuses with {status}: {' '.join((error.server_message or '').split())}")
