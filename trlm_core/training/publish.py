"""A checkpoint on the Hub: what loads it, its history and its card, in one commit. Imports no trainer.

Nothing else of the artifact or of a save goes there: manifest.json may name this machine's folders, and a trainer's state is nobody else's.
"""

import logging
import re
from pathlib import Path

from trlm_core.artifacts.manifest import Manifest, file_entries
from trlm_core.artifacts.store import Store
from trlm_core.data import repository
from trlm_core.data.repository import CARD, Kind, LocalFile, Publication, opened

logger = logging.getLogger(__name__)

OURS = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|(generation_)?config\.json|tokenizer(_config)?\.json"
    r"|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|chat_template\.jinja|history\.jsonl"
)
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
CHECKPOINTS = Kind("model", "checkpoint", "model", OURS, WEIGHTS)


def check_repository(repo: str) -> None:
    """Before any work: the token may write to the model repository, and no model of others lies there. A missing one is made, private.

    Raises PublishError, PublishConnectionError.
    """
    repository.check_repository(repo, CHECKPOINTS)


def found(store: Store, checkpoint: Manifest, card: str, repo: str) -> Publication | None:
    """The commit at which the repository is this checkpoint; None where it is not. Raises as `publish` does."""
    return opened(repo, CHECKPOINTS).found(_files(store, checkpoint, card))


def publish(store: Store, checkpoint: Manifest, card: str, repo: str) -> Publication:
    """Bring the repository to this checkpoint by one commit on what is there now, or by none where all is there already.

    Raises StoreError, PublishError, PublishConnectionError.
    """
    published = opened(repo, CHECKPOINTS).brought_to(_files(store, checkpoint, card), checkpoint.address)
    logger.info("%s: %s %s", checkpoint.address, "published" if published.is_new else "is there already,", published.url)
    return published


def publish_folder(folder: Path, repo: str, message: str) -> Publication:
    """Bring the repository to a folder's model and card. Raises PublishError, PublishConnectionError."""
    entries = {name: entry for name, entry in file_entries(folder).items() if name == CARD or OURS.fullmatch(name)}
    files = {name: LocalFile.of_entry(folder / name, entry) for name, entry in entries.items()}
    return opened(repo, CHECKPOINTS).brought_to(files, message)


def _files(store: Store, checkpoint: Manifest, card: str) -> dict[str, LocalFile]:
    folder = store.folder(checkpoint)
    ours = {name: LocalFile.of_entry(folder / name, entry) for name, entry in checkpoint.files.items() if OURS.fullmatch(name)}
    return {**ours, CARD: LocalFile.of_bytes(card.encode())}
