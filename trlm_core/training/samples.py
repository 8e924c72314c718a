"""A few fixed prompts, answered while a stage trains, so that its thoughts can be read as they grow.

samples.jsonl: {"step": 60, "prompt": "What is 17 + 25?", "reply": "<think>17 + 25 = 42.</think>42", "tokens": 21, "ended": true}
"""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trlm_core.inference.generate import generate_replies
from trlm_core.metric_spool import MetricSpool
from trlm_core.text.tokenizer import prompt_ids
from trlm_core.training.checkpoint import append_line
from trlm_core.training.errors import is_out_of_memory

logger = logging.getLogger(__name__)

PROMPTS = ("What is 17 + 25?", "Sort these words: pear, apple, fig.", "Who are you?")
SAMPLES = "samples.jsonl"
PARTS = 5  # of a stage, at whose ends samples are taken where nobody says how often
NEW_TOKENS = {"cpu": 64}  # what a CPU writes in a few seconds
NEW_TOKENS_ELSEWHERE = 512


class Samples(TrainerCallback):
    """Greedy replies: they take no random number from the training. For one process of a group.

    Where weights are sharded for all of it: without a `spool` one takes part in the forwards and writes nothing.
    """

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, spool: MetricSpool | None, every: int | None) -> None:
        self._folder, self._tokenizer, self._spool, self._every = folder, tokenizer, spool, every
        self._prompts = [prompt_ids(tokenizer, [{"role": "user", "content": prompt}]) for prompt in PROMPTS]

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        every = self._every or max(1, state.max_steps // PARTS)
        if not logs or "loss" not in logs or state.global_step % every:
            return
        try:
            self._sample(kwargs["model"], state.global_step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("step %d: no samples, for which there is no memory: %s", state.global_step, error)
        finally:
            kwargs["model"].train()

    def _sample(self, model: PreTrainedModel, step: int) -> None:
        new = NEW_TOKENS.get(model.device.type, NEW_TOKENS_ELSEWHERE)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # a token at a time, compiled layers would compile anew
            replies = generate_replies(model, self._tokenizer, self._prompts, max_new_tokens=new)
        if self._spool is None:
            return
        samples = [
            {"step": step, "prompt": prompt, "reply": reply.text, "tokens": reply.tokens, "ended": reply.ended}
            for prompt, reply in zip(PROMPTS, replies, strict=True)
        ]
        for sample in samples:
            append_line(self._folder / SAMPLES, sample)
        self._spool.log_text(_read_by_people(samples), f"samples/step-{step:06d}.md")


def _read_by_people(samples: list[dict[str, Any]]) -> str:
    return "\n\n".join(f"**{sample['prompt']}**\n\n    {sample['reply'].replace(chr(10), chr(10) + '    ')}" for sample in samples) + "\n"
