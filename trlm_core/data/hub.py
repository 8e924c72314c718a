"""The Hub, through its own clients: the commit of a revision, the files of a split, what a repository's card says.

No code of a repository is ever run: `datasets` resolves files and reads none here. The token is the clients' own business (HF_TOKEN).
"""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from trlm_core.artifacts.errors import first_line
from trlm_core.data.errors import SourceConnectionError, SourceError

Result = TypeVar("Result")
RepoKind = Literal["dataset", "model"]
READABLE = ("parquet", "json", "arrow")
_waits, _imports = threading.Lock(), threading.Lock()
CONNECT_SECONDS, SECONDS = 10.0, 120.0  # the second: without a byte, in either direction


@dataclass(frozen=True)
class SplitFiles:
    """Paths in the split's order: hf://datasets/owner/name@commit/SFT/a-00000-of-00002.parquet, or files of a local folder."""

    paths: tuple[str, ...]
    format: str


@dataclass(frozen=True)
class Terms:
    """What a repository's card says of its use."""

    license: str | None
    languages: tuple[str, ...]


def commit_of(repo: str, revision: str, kind: RepoKind = "dataset") -> str:
    """The 40 hexadecimal digits that a branch or tag names now. Raises SourceError, SourceConnectionError."""
    from huggingface_hub import HfApi

    info = _asked(lambda: HfApi().repo_info(repo, revision=revision, repo_type=kind), f"{repo}@{revision}")
    return str(info.sha)


@functools.lru_cache(maxsize=256)
def split_files(repo: str, subset: str | None, split: str, revision: str) -> SplitFiles:
    """Files of one split at a commit (or of a folder). Raises SourceError where there is no such subset or split."""
    datasets = resolver()
    where = f"{repo}{f' / {subset}' if subset else ''} @ {revision[:12]}"
    asked: dict[str, Any] = {} if Path(repo).is_dir() else {"revision": revision}
    builder = _asked(lambda: datasets.load_dataset_builder(repo, subset, **asked), where)
    found: dict[str, Any] = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    if split not in found:
        raise SourceError(f"{where}: wanted the split {split}, got {', '.join(sorted(found)) or 'none'}")
    if builder.info.builder_name not in READABLE:
        raise SourceError(f"{where} / {split}: wanted files of {', '.join(READABLE)}, got {builder.info.builder_name}")
    return SplitFiles(tuple(str(path) for path in found[split]), str(builder.info.builder_name))


def subsets_of(repo: str, revision: str) -> list[str]:
    datasets = resolver()
    return [str(name) for name in _asked(lambda: datasets.get_dataset_config_names(repo, revision=revision), repo)]


@functools.lru_cache(maxsize=64)
def terms_of(repo: str, revision: str) -> Terms:
    from huggingface_hub import DatasetCard, HfApi

    readme = Path(repo) / "README.md"
    if readme.is_file():
        card: Any = DatasetCard.load(readme, ignore_metadata_errors=True).data
    else:
        card = None if Path(repo).is_dir() else _asked(lambda: HfApi().dataset_info(repo, revision=revision), repo).card_data
    told = card.to_dict() if card is not None else {}
    languages = told.get("language") or []
    return Terms(_plain(told.get("license")), tuple([languages] if isinstance(languages, str) else [str(each) for each in languages]))


def resolver() -> Any:
    """`datasets`, for threads that want it at once: its modules import each other, and a bar would take the others' lock away."""
    with _imports:
        import datasets

        datasets.utils.tqdm.get_lock()  # who finds no lock removes the one it makes, though another thread has found it meanwhile
        return datasets


def bound_waits() -> None:
    """The clients wait for ever where nobody tells them how long: they take no timeout for most of their calls. Once a process."""
    with _waits:
        _bounded_clients()


@functools.cache
def _bounded_clients() -> None:
    import httpx2
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def bounded() -> httpx2.Client:
        client = default_client_factory()
        client.timeout = httpx2.Timeout(SECONDS, connect=CONNECT_SECONDS)
        return client

    set_client_factory(bounded)


def _plain(value: Any) -> str | None:
    return ", ".join(str(each) for each in value) if isinstance(value, list) else (str(value) if value else None)


def _asked(call: Callable[[], Result], where: str) -> Result:
    """The clients' many errors as our two. A transport's own words may quote a header, and so a token."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    bound_waits()
    try:
        return call()
    except OfflineModeIsEnabled as error:
        raise SourceError(f"{where}: wanted the Hub, got HF_HUB_OFFLINE set; unset it") from error
    except HfHubHTTPError as error:
        raise told(error, where) from error
    except (httpx2.TransportError, ConnectionError) as error:
        raise SourceConnectionError(f"{where}: wanted an answer of the Hub, got {type(error).__name__}") from error
    except UnicodeEncodeError as error:
        raise SourceError(f"{where}: wanted a token, got characters that no token has; set HF_TOKEN") from error
    except (ValueError, FileNotFoundError) as error:  # `datasets`: no such subset, no data files
        raise _cause_told(error, where) from error


def told(error: Any, where: str) -> SourceError | SourceConnectionError:
    """What an answer of the Hub means for the user."""
    status = error.response.status_code
    if status in {401, 403}:
        return SourceError(f"{where}: wanted access, the Hub says {status}; set HF_TOKEN to a token that may read it, or accept its terms")
    if status == 404:
        return SourceError(f"{where}: wanted a repository, revision and file that exist, the Hub says 404")
    return SourceConnectionError(f"{where}: wanted an answer of the Hub, got {status} time after time")


def _cause_told(error: BaseException, where: str) -> SourceError | SourceConnectionError:
    """`datasets` says "not found" of a refused login and of a server that fails too: the cause, if it has one, tells which."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            return told(cause, where)
        cause = cause.__cause__ or cause.__context__
    return SourceError(f"{where}: wanted a dataset that `datasets` can resolve, got: {first_line(error)}")
