"""A finished blend on the Hub: its shards and its card, in one commit.

Nothing else of the artifact goes there: manifest.json and origins.json may name this machine's folders, checks.json stands in the card.
A file of an older blend that this one no longer has leaves with the same commit; whatever else the repository holds stays.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trlm_core.artifacts.errors import first_line
from trlm_core.artifacts.manifest import FileEntry, Manifest
from trlm_core.artifacts.store import Store
from trlm_core.data.errors import PublishConnectionError, PublishError
from trlm_core.data.hub import bound_waits

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
DATA = re.compile(r"(train|held_out)(-\d{5}-of-\d{5}\.parquet|\.jsonl)")  # of this blend, or of an older one
DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".arrow", ".csv")  # of anybody's data: their card is not ours to replace
CARD = "README.md"
TAG = "trlm"  # of every blend's card
TOKEN = re.compile(r"[!-~]+")  # what a header takes: of another the clients say that a codec failed, or quote it whole


@dataclass(frozen=True)
class Publication:
    repo: str
    commit: str
    url: str  # of the commit
    is_new: bool  # False: the repository had it already


@dataclass(frozen=True)
class _There:
    """What a repository holds at a commit."""

    sha: str
    files: dict[str, Any]  # path -> size, blob_id (of git), lfs.sha256


def check_repository(repo: str) -> None:
    """Before any work: the token may write to the dataset repository, and no data of others lies there. A missing one is made, private.

    Raises PublishError, PublishConnectionError.
    """
    _ready(repo)


def found(store: Store, blend: Manifest, repo: str) -> Publication | None:
    """The commit at which the repository is this blend; None where it is not. Raises as `publish` does."""
    api, there = _ready(repo)
    is_there = not any(_changes(store.folder(blend), blend, there))
    return Publication(repo, there.sha, _url(api, repo, there.sha), is_new=False) if is_there else None


def publish(store: Store, blend: Manifest, repo: str) -> Publication:
    """Bring the repository to this blend by one commit on what is there now, or by none where all is there already.

    The commit is read back: a .gitignore there would leave files out. Raises StoreError, PublishError, PublishConnectionError.
    """
    api, there = _ready(repo)
    folder = store.folder(blend)
    added, gone = _changes(folder, blend, there)
    if not added and not gone:
        return _told(blend, Publication(repo, there.sha, _url(api, repo, there.sha), is_new=False))
    commit = _committed(api, repo, folder, blend.address, added, gone, there.sha)
    missing, left = _changes(folder, blend, _listed(api, repo, commit))
    if wrong := ", ".join(missing + left):
        raise PublishError(f"{repo}: wanted this blend's files in commit {commit}, got others for {wrong}; is there a .gitignore?")
    return _told(blend, Publication(repo, commit, _url(api, repo, commit), is_new=True))


def _ready(repo: str) -> tuple[Any, _There]:
    """A client that may write, and what there is."""
    api = _api(repo)
    _asked(lambda: api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True), repo)
    _asked(lambda: api.auth_check(repo, repo_type="dataset", write=True), repo)
    return api, _listed(api, repo)


def _listed(api: Any, repo: str, commit: str | None = None) -> _There:
    """Raises PublishError where files with our names lie under a card that is none of ours."""
    info = _asked(lambda: api.dataset_info(repo, revision=commit, files_metadata=True), repo)
    files = {each.rfilename: each for each in info.siblings or []}
    tags = (info.card_data.to_dict() if info.card_data else {}).get("tags") or []
    foreign = [path for path in files if DATA.fullmatch(path) or path.endswith(DATA_SUFFIXES)]
    if foreign and TAG not in ([tags] if isinstance(tags, str) else tags):
        raise PublishError(
            f"{repo}: wanted no data but a blend's, got {foreign[0]} and no tag {TAG} on the card; choose another repository"
        )
    return _There(info.sha, files)


def _changes(folder: Path, blend: Manifest, there: _There) -> tuple[list[str], list[str]]:
    """Which files have to be sent, and which to be taken away."""
    ours = {name: entry for name, entry in blend.files.items() if name == CARD or DATA.fullmatch(name)}
    added = [name for name, entry in ours.items() if not _is_same(there.files.get(name), folder / name, entry)]
    return added, [path for path in there.files if DATA.fullmatch(path) and path not in ours]


def _committed(api: Any, repo: str, folder: Path, message: str, added: list[str], gone: list[str], parent: str) -> str:
    """The new commit. Raises PublishConnectionError where another came after the parent."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    changes = [*(CommitOperationAdd(name, folder / name) for name in added), *(CommitOperationDelete(name) for name in gone)]
    return _asked(lambda: api.create_commit(repo, changes, commit_message=message, repo_type="dataset", parent_commit=parent), repo).oid


def _is_same(file: Any | None, path: Path, entry: FileEntry) -> bool:
    if file is None or file.size != entry.size:
        return False
    return file.lfs.sha256 == entry.sha256 if file.lfs else file.blob_id == _git_blob(path.read_bytes())


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _url(api: Any, repo: str, commit: str) -> str:
    return f"{api.endpoint}/datasets/{repo}/commit/{commit}"


def _told(blend: Manifest, publication: Publication) -> Publication:
    logger.info("%s: %s %s", blend.address, "published" if publication.is_new else "is there already,", publication.url)
    return publication


def _api(repo: str) -> Any:
    """The Hub's client. Raises PublishError where the name or the token can be none."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PublishError(f"publish: wanted owner/name of a dataset repository, got {repo!r}: {first_line(error)}") from error
    if "/" not in repo:
        raise PublishError(f"publish: wanted owner/name of a dataset repository, got {repo!r}")
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
