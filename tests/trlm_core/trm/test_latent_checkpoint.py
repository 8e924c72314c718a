"""A latent-thought model saved and loaded: the same logits, no base weights, and never onto another base."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tests.trlm_core.trm.tiny_thinker import BOS, END, EOS, LORA, TOKENS, V, make_config, make_llama, make_model, right
from trlm_core.trm.hidden_states import base_digest
from trlm_core.trm.latent_checkpoint import (
    LatentCheckpointError,
    load_latent_checkpoint,
    load_latent_tokenizer,
    save_latent_checkpoint,
)

ROW = [BOS, 5, 6, TOKENS.think, END, 9, EOS]


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(V)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), eos_token="w0", pad_token="w0")


@pytest.mark.parametrize("lora", [None, LORA])
@torch.no_grad()
def test_a_loaded_model_gives_the_same_logits(tmp_path: Path, lora: object):
    model = make_model(lora=lora)
    for name, weight in model.base.named_parameters():
        if "lora_B" in name or "trainable_tokens" in name:
            weight.add_(0.1)
    save_latent_checkpoint(model, make_tokenizer(), tmp_path)
    loaded = load_latent_checkpoint(tmp_path, make_llama())
    assert torch.allclose(loaded(*right([ROW])).logits_BLV, model(*right([ROW])).logits_BLV, atol=1e-6)
    assert loaded.config == model.config
    assert load_latent_tokenizer(tmp_path).encode("w5") == [5]


def test_the_folder_holds_none_of_the_bases_weights(tmp_path: Path):
    model = make_model()
    save_latent_checkpoint(model, make_tokenizer(), tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(model.thinker.state_dict())
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]


def test_a_base_with_other_weights_is_refused(tmp_path: Path):
    save_latent_checkpoint(make_model(), make_tokenizer(), tmp_path)
    with pytest.raises(LatentCheckpointError, match=r"wanted the base that it was trained on .*got another one"):
        load_latent_checkpoint(tmp_path, make_llama(seed=1))


def test_a_base_in_another_dtype_is_the_same_base():
    assert base_digest(make_llama()) == base_digest(make_llama(dtype=torch.bfloat16))
    assert base_digest(make_llama()) != base_digest(make_llama(seed=1))


def test_a_base_is_loaded_from_where_the_configuration_says(tmp_path: Path):
    base = make_llama()
    base.save_pretrained(str(tmp_path / "base"))
    model = make_model(base, base_model_name_or_path=str(tmp_path / "base"))
    save_latent_checkpoint(model, make_tokenizer(), tmp_path / "latent")
    loaded = load_latent_checkpoint(tmp_path / "latent")
    assert torch.allclose(loaded(*right([ROW])).logits_BLV, model(*right([ROW])).logits_BLV, atol=1e-6)


def test_a_base_that_cannot_be_had_is_named_with_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = make_model(base_model_name_or_path="nobody/no-such-model", base_revision="0" * 40)
    save_latent_checkpoint(model, make_tokenizer(), tmp_path)
    with pytest.raises(LatentCheckpointError, match="wanted the base nobody/no-such-model at revision 0000"):
        load_latent_checkpoint(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    with pytest.raises(LatentCheckpointError, match=r"config\.json: wanted a latent_thought configuration of version 1, got no such file"):
        load_latent_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(LatentCheckpointError, match="got llama None"):
        load_latent_checkpoint(tmp_path)


def test_every_field_of_the_configuration_comes_back(tmp_path: Path):
    config = make_config(insertion="slide", sink_tokens=3, eval_steps=5, eval_halting=True, lora=LORA, hidden_layer=-2)
    model = make_model(**{each.name: getattr(config, each.name) for each in dataclasses.fields(config)})
    save_latent_checkpoint(model, make_tokenizer(), tmp_path)
    assert load_latent_checkpoint(tmp_path, make_llama()).config == config
