"""A finished blend on the Hub: its shards and its card, in one commit.

Nothing else of the artifact goes there: manifest.json and origins.json may name this machine's folders, checks.json stands in the card.
A file of an older blend that this one no longer has leaves with the same commit; whatever else the repository holds stays.
"""

import logging
import re

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.data import repository
from trlm_core.data.repository import CARD, Kind, LocalFile, Publication, opened

logger = logging.getLogger(__name__)

DATA = re.compile(r"(train|held_out)(-\d{5}-of-\d{5}\.parquet|\.jsonl)")  # of this blend, or of an older one
BLENDS = Kind("dataset", "blend", "data", DATA, (".parquet", ".jsonl", ".json", ".arrow", ".csv"))


def check_repository(repo: str) -> None:
    """Before any work: the token may write to the dataset repository, and no data of others lies there. A missing one is made, private.

    Raises PublishError, PublishConnectionError.
    """
    repository.check_repository(repo, BLENDS)


def found(store: Store, blend: Manifest, repo: str) -> Publication | None:
    """The commit at which the repository is this blend; None where it is not. Raises as `publish` does."""
    return opened(repo, BLENDS).found(_files(store, blend))


def publish(store: Store, blend: Manifest, repo: str) -> Publication:
    """Bring the repository to this blend by one commit on what is there now, or by none where all is there already.

    Raises StoreError, PublishError, PublishConnectionError.
    """
    published = opened(repo, BLENDS).brought_to(_files(store, blend), blend.address)
    logger.info("%s: %s %s", blend.address, "published" if published.is_new else "is there already,", published.url)
    return published


def _files(store: Store, blend: Manifest) -> dict[str, LocalFile]:
    folder = store.folder(blend)
    ours = {name: entry for name, entry in blend.files.items() if name == CARD or DATA.fullmatch(name)}
    return {name: LocalFile.of_entry(folder / name, entry) for name, entry in ours.items()}
