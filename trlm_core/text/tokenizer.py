"""The tokenizer of a checkpoint: loading, new tokens, ids of a conversation. renderer.py makes ids and labels of a whole blend."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trlm_core.recipes.schema import Rendering
from trlm_core.text.templates import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]  # {"role": "user", "content": "What is 4 + 3?"}
IGNORED = -100  # the label of a token that carries no loss


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer  # torch: seconds and 250 MB that a blend need not cost

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def stage_tokenizer(base: "PreTrainedTokenizerBase", added: Sequence[str], rendering: Rendering) -> "PreTrainedTokenizerBase":
    """The base's tokenizer with the special tokens that this stage and those before it add, and this stage's template. Changes `base`."""
    if added:
        base.add_special_tokens({"additional_special_tokens": list(added)}, replace_extra_special_tokens=False)
    base.chat_template = chat_template(rendering)
    return base


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> list[int]:
    """Token ids up to and with the generation prompt: the place where a reply begins."""
    return _templated(tokenizer, messages, add_generation_prompt=True)["input_ids"]


def conversation_ids(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> list[int]:
    return _templated(tokenizer, messages)["input_ids"]


def _templated(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], **options: Any) -> dict[str, list[int]]:
    out: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    return {key: list(value) for key, value in out.items()}
