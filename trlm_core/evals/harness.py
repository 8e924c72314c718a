"""The harness: a checkpoint answers the recipe's questions, and a stage's held-out rows are scored; each result is an artifact.

evals/<recipe>/<subject>/replies.jsonl holds ScoredReply lines; evals/<recipe>/<stage>-held-out/held_out.json a HeldOut.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedTokenizerBase

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.data.rows import conversation
from trlm_core.data.shards import read_shards
from trlm_core.evals.held_out import (
    HeldOutLoss,
    Preferences,
    as_conversations,
    held_out_loss,
    longer_is_chosen,
    preference_results,
    token_log_probs,
)
from trlm_core.evals.reasoning import ScoredReply, estimate, score
from trlm_core.evals.specs import held_out_spec, replies_spec
from trlm_core.evals.suites import Question, read_questions
from trlm_core.inference.generate import generate_replies
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import DPOTraining, Evaluation, Recipe, Rendering, Stage
from trlm_core.text.templates import chat_template
from trlm_core.text.tokenizer import load_tokenizer, prompt_ids
from trlm_core.training.checkpoint import load_model
from trlm_core.training.hardware import detect_hardware

REPLIES, HELD_OUT = "replies.jsonl", "held_out.json"
OnProgress = Callable[[int, int], None]  # done, of how many


class HeldOut(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    loss: HeldOutLoss
    preferences: list[Preferences]  # empty for SFT


def answer_questions(
    store: Store,
    recipe: Recipe,
    evaluation: Evaluation,
    subject: str,
    checkpoint: Manifest,
    questions: Manifest,
    execution: Execution,
    *,
    rendering: Rendering,
    shots: bool,
    on_progress: OnProgress,
) -> Manifest:
    """The checkpoint's reply to every question, scored. Nothing is forced: the prompt ends with `assistant\\n`."""

    def build(folder: Path) -> dict[str, Any]:
        asked = read_questions(store.folder(questions))
        tokenizer = load_tokenizer(store.folder(checkpoint))
        tokenizer.chat_template = chat_template(rendering)
        model = load_model(store.folder(checkpoint), evaluation.precision).to(_device(execution))  # type: ignore[arg-type]
        done = _Done(len(asked), on_progress)
        generated = generate_replies(
            model,
            tokenizer,
            [_prompt(tokenizer, question, shots) for question in asked],
            max_new_tokens=evaluation.max_new_tokens,
            sequences_per_batch=execution.sequences_per_generation_batch,
            on_batch=done,
        )
        replies = [score(question, each) for question, each in zip(asked, generated, strict=True)]
        (folder / REPLIES).write_text("\n".join(reply.model_dump_json() for reply in replies) + "\n")
        return summary(replies)

    return store.make(replies_spec(recipe, evaluation, subject, checkpoint, questions, rendering, shots=shots), build)


def read_replies(folder: Path) -> list[ScoredReply]:
    return [ScoredReply.model_validate(json.loads(line)) for line in (folder / REPLIES).read_text().splitlines()]


def summary(replies: list[ScoredReply]) -> dict[str, Any]:
    """Means with standard errors, over the families that were trained on and over those that were not."""
    groups = {"trained": [r for r in replies if r.trained_on], "unseen": [r for r in replies if not r.trained_on]}
    return {name: _group_summary(group) for name, group in groups.items() if group}


def score_held_out(
    store: Store,
    recipe: Recipe,
    stage: Stage,
    checkpoint: Manifest,
    start: Manifest,
    dataset: Manifest,
    execution: Execution,
    *,
    on_progress: OnProgress,
) -> Manifest:
    """The stage's held-out rows under its checkpoint and under the checkpoint that it started from."""

    def build(folder: Path) -> dict[str, Any]:
        rows = read_shards(store.folder(dataset), "held_out").to_pylist()
        tokenizer = load_tokenizer(store.folder(dataset) / "tokenizer")
        pairs = isinstance(stage.training, DPOTraining)
        scored = as_conversations(rows) if pairs else rows
        done = _Done(2 * len(scored), on_progress)
        after, before = (_log_probs(store.folder(each), scored, tokenizer, execution, done) for each in (checkpoint, start))
        if isinstance(stage.training, DPOTraining):
            train = read_shards(store.folder(dataset), "train").to_pylist()
            loss, preferences = preference_results(
                rows,
                after,
                before,
                beta=stage.training.beta,
                seen_faults=stage.blend.faults,
                longer_is_chosen=longer_is_chosen(train),
            )
        else:
            added: Any = tokenizer.convert_tokens_to_ids(list(recipe.added_tokens(stage)))
            loss, preferences = held_out_loss(rows, after, before, added), []
        (folder / HELD_OUT).write_text(HeldOut(stage=stage.name, loss=loss, preferences=preferences).model_dump_json(indent=1))
        return {"rows": len(rows), "loss": loss.loss, "loss_at_start": loss.loss_at_start}

    return store.make(held_out_spec(recipe, stage, checkpoint, start, dataset), build)


def read_held_out(folder: Path) -> HeldOut:
    return HeldOut.model_validate(json.loads((folder / HELD_OUT).read_text()))


class _Done:
    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress

    def __call__(self, count: int) -> None:
        self._done += count
        self._on_progress(self._done, self._total)


def _log_probs(
    folder: Path, rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, execution: Execution, done: _Done
) -> list[torch.Tensor]:
    model = load_model(folder, "float32").to(_device(execution))  # type: ignore[arg-type]
    pad: Any = tokenizer.pad_token_id
    return token_log_probs(model, rows, pad, done)


def _device(execution: Execution) -> str:
    hardware = detect_hardware(execution, None)
    torch.set_num_threads(hardware.threads)
    return hardware.device


def _prompt(tokenizer: PreTrainedTokenizerBase, question: Question, shots: bool) -> list[int]:
    solved = [message for asked, answer in question.shots for message in conversation(asked, answer)] if shots else []
    return prompt_ids(tokenizer, [*solved, {"role": "user", "content": question.question}])


def _group_summary(replies: list[ScoredReply]) -> dict[str, Any]:
    return {
        "accuracy": estimate(reply.right for reply in replies).model_dump(),
        "well_formed": estimate(reply.well_formed for reply in replies).model_dump(),
        "reply_tokens": estimate(reply.reply_tokens for reply in replies).model_dump(),
        "thought_words": estimate(reply.thought_words for reply in replies if reply.thought_words is not None).model_dump(),
    }
