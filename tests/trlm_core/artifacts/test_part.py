"""Part of an artifact: its files alone are checked and, of a remote one, fetched; the whole is still the whole."""

from pathlib import Path
from typing import Any

import pytest

from trlm_core.artifacts.errors import StoreError
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.text.tokenizer_files import tokenizer_folder

SPEC = Spec("checkpoints", "bases", "tiny", {"made_by": "test"}, {})
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"tokens"}


def build(folder: Path) -> dict[str, Any]:
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return {}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def base(store: Store) -> Manifest:
    return store.make(SPEC, build)


def test_a_tokenizer_is_had_whatever_its_weights_are_like(store: Store, base: Manifest):
    (store.root / base.address / "model.safetensors").write_bytes(b"WEIGHTS")
    assert (tokenizer_folder(store, base) / "tokenizer.json").read_bytes() == b"tokens"
    with pytest.raises(StoreError, match=r"model\.safetensors: wanted sha256"):
        store.folder(base)


def test_a_damaged_tokenizer_is_named(store: Store, base: Manifest):
    (store.root / base.address / "tokenizer.json").write_bytes(b"TOKENS")
    with pytest.raises(StoreError, match=r"tokenizer\.json: wanted sha256"):
        tokenizer_folder(store, base)


def test_of_a_remote_artifact_the_part_alone_is_fetched_and_the_rest_when_it_is_wanted(s3_store: Store, other_machine: Store):
    made = s3_store.make(SPEC, build)
    folder = tokenizer_folder(other_machine, made)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]
    assert sorted(path.name for path in other_machine.folder(made).iterdir()) == sorted([*FILES, "manifest.json"])
    (folder / "tokenizer.json").write_bytes(b"TOKENS")
    assert (tokenizer_folder(other_machine, made) / "tokenizer.json").read_bytes() == b"tokens", "fetched again"
