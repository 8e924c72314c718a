"""A checkpoint: weights, tokenizer, and the history of its training, one line a step.

history.jsonl: {"step": 1, "loss": 2.31, "mean_token_accuracy": 0.52, "entropy": 1.7, "grad_norm": 4.2, "learning_rate": 1e-4, ...}
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from trlm_core.artifacts.aside import write_aside

HISTORY = "history.jsonl"


def load_model(folder: Path, precision: str, attention: str | None = None) -> PreTrainedModel:
    """The model of a checkpoint folder; weights in bfloat16 for `bf16`, in float32 otherwise."""
    disable_progress_bar()  # a bar of its own for every load would tear ours
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, attn_implementation=attention, local_files_only=True)


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict[str, Any] | None = None
) -> None:
    """`weights`: the whole ones, of a model that has only its part of them."""
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def append_line(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON; none where there is no file. What begins with a line that cannot be read, as a kill leaves it, is left out."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def rewind(path: Path, step: int) -> None:
    """Drop the lines of later steps."""
    write_aside(path, "".join(json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step))


def history_counts(history: list[dict[str, Any]]) -> dict[str, int]:
    return {"steps": len(history), "useful_tokens": int(sum(line["useful_tokens"] for line in history))}


def read_history(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / HISTORY)
