"""A latent-thought model on the disk: its thinker's weights and which base they belong to, never the base's own weights.

config.json          sizes, base, tokens, and a digest of the base's configuration and weights
model.safetensors    the thinker: the averaged weights, which are what is evaluated
adapter/             the adapters of phase 2b, as peft writes them
tokenizer files, README.md
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from trlm_core.trm.config import HiddenStateConfig, LatentThoughtConfig, LoraConfig, RecursionConfig
from trlm_core.trm.latent_thought_model import LatentThoughtModel, embedding_scale
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thinker import Thinker

FORMAT_VERSION = 1
CONFIG, WEIGHTS, ADAPTER = "config.json", "model.safetensors", "adapter"


class LatentCheckpointError(ValueError):
    """The folder is no latent-thought model, or another base's; the message says which was wanted."""


def save_latent_checkpoint(model: LatentThoughtModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: each.detach().cpu().contiguous() for name, each in model.thinker.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if isinstance(model.base, PeftModel):
        model.base.save_pretrained(str(folder / ADAPTER))
    tokenizer.save_pretrained(str(folder))
    document = {
        "format_version": FORMAT_VERSION,
        "model_type": "latent_thought",
        **dataclasses.asdict(model.config),
        "tokens": dataclasses.asdict(model.tokens),
        "base_digest": model.base_digest,
    }
    (folder / CONFIG).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def load_latent_checkpoint(folder: Path, base: PreTrainedModel | None = None, dtype: torch.dtype = torch.float32) -> LatentThoughtModel:
    """In evaluation mode. Without a base, it is loaded as the configuration names it.

    Raises LatentCheckpointError for another format, a base that cannot be had, and a base that the thinker was not trained on.
    """
    document = _document(folder)
    config = _config(document)
    base = _base(config, dtype) if base is None else base
    thinker = Thinker(config.states, embedding_scale(base))
    thinker.load_state_dict(load_file(folder / WEIGHTS))
    model = LatentThoughtModel(base, config, ThinkTokens(**document["tokens"]), thinker)
    if model.base_digest != document["base_digest"]:
        wanted = f"wanted the base that it was trained on ({config.base_model_name_or_path}, digest {document['base_digest'][:12]})"
        raise LatentCheckpointError(f"{folder}: {wanted}, got another one (digest {model.base_digest[:12]}); give it that base")
    if isinstance(model.base, PeftModel):
        set_peft_model_state_dict(model.base, load_file(folder / ADAPTER / "adapter_model.safetensors"))
    return model.eval()


def load_latent_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    # With a configuration of no model: the folder's own is of a kind that transformers warns of.
    return AutoTokenizer.from_pretrained(str(folder), config=PretrainedConfig(), local_files_only=True)


def _document(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    document = json.loads(path.read_text()) if path.is_file() else {}
    if document.get("format_version") != FORMAT_VERSION or document.get("model_type") != "latent_thought":
        got = f"got {document.get('model_type')} {document.get('format_version')}" if document else "got no such file"
        raise LatentCheckpointError(f"{path}: wanted a latent_thought configuration of version {FORMAT_VERSION}, {got}")
    return document


def _config(document: dict[str, Any]) -> LatentThoughtConfig:
    fields = {each.name: document[each.name] for each in dataclasses.fields(LatentThoughtConfig)}
    states = HiddenStateConfig(**{**fields["states"], "recursion": RecursionConfig(**fields["states"]["recursion"])})
    lora = fields["lora"] and LoraConfig(**{**fields["lora"], "target_modules": tuple(fields["lora"]["target_modules"])})
    return LatentThoughtConfig(**{**fields, "states": states, "lora": lora})


def _base(config: LatentThoughtConfig, dtype: torch.dtype) -> PreTrainedModel:
    name, revision = config.base_model_name_or_path, config.base_revision
    try:
        return AutoModelForCausalLM.from_pretrained(name, revision=revision or "main", dtype=dtype)
    except OSError as error:
        wanted = f"wanted the base {name}" + (f" at revision {revision}" if revision else "")
        raise LatentCheckpointError(f"{wanted}, got: {error}; give a base that is here, or allow the Hub") from error
