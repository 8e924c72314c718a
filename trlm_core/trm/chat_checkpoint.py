"""Which checkpoint is talked to, and how it is opened: one without a thinker without the extra `trm`, of which nothing is imported here."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transformers.utils import CONFIG_NAME

from trlm_core.artifacts.store import Store
from trlm_core.inference.chat import ChatError, TextChat
from trlm_core.recipes.execution import Execution
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.training.checkpoint import load_model
from trlm_core.training.hardware import detect_hardware

if TYPE_CHECKING:
    from trlm_core.trm.latent_chat import LatentChat


@dataclass(frozen=True)
class ChatSettings:
    thinking: Literal["latent", "text", "off"]
    steps: int | None  # supervision steps of a latent thought; None: the checkpoint's own
    halting: bool | None  # likewise
    max_new_tokens: int
    device: str  # as Execution has it


def chat_folder(checkpoint: str, store: str) -> Path:
    """checkpoint: a folder, or an address in the store, whose newest version is taken where it names none.

    Raises ChatError for what is not there, and for an artifact that holds no model.
    """
    if (Path(checkpoint) / CONFIG_NAME).is_file():
        return Path(checkpoint)
    if Store.exists(store):
        opened = Store.open(store)
        if addresses := opened.finished(checkpoint):
            return _with_a_model(opened.folder(opened.manifests_at(addresses[-1:])[0]), addresses[-1])
    raise ChatError(f"checkpoint: wanted a folder with {CONFIG_NAME}, or an address in the store {store}, got {checkpoint!r}")


def is_latent(folder: Path) -> bool:
    return json.loads((folder / CONFIG_NAME).read_text()).get("model_type") == "latent_thought"


def open_chat(folder: Path, settings: ChatSettings) -> "TextChat | LatentChat":
    """Raises ChatError, LatentCheckpointError, ValueError for no device of ours."""
    execution = Execution.model_validate({"device": settings.device})
    settings = replace(settings, device=detect_hardware(execution, None).device)
    if not is_latent(folder):
        return _text_chat(folder, settings)
    from trlm_core.trm.latent_chat import latent_chat

    return latent_chat(folder, settings)


def _with_a_model(folder: Path, address: str) -> Path:
    if not (folder / CONFIG_NAME).is_file():
        got = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise ChatError(f"{address}: wanted a language model or a thinker with its {CONFIG_NAME}, got {got}; name a phase's checkpoint")
    return folder


def _text_chat(folder: Path, settings: ChatSettings) -> TextChat:
    if settings.thinking == "latent":
        raise ChatError(f"{folder}: wanted a latent-thought checkpoint for --thinking latent, got a language model; say text or off")
    model = load_model(folder, "float32").to(settings.device)  # type: ignore[arg-type]
    return TextChat(model, load_tokenizer(folder), settings.thinking == "text", settings.max_new_tokens)
