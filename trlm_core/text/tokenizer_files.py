"""The tokenizer of a base in the store, without its weights: 3 MB to check, or to fetch, beside 540."""

from pathlib import Path

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store

WEIGHTS = ".safetensors"


def tokenizer_folder(store: Store, base: Manifest) -> Path:
    """Local folder with every file of the base but its weights. Raises StoreError where one is damaged."""
    return store.part(base, [name for name in base.files if not name.endswith(WEIGHTS)])
