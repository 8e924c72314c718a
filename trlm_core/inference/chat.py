"""Talking to a checkpoint one prompt at a time: with a thought in text, or with none.

text    user turn | <think> ... </think> answer      as the checkpoint itself goes on
off     user turn | <think></think> | answer         an empty thought is put before the answer
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trlm_core.inference.generate import generate_replies
from trlm_core.text.thoughts import CLOSE, OPEN
from trlm_core.text.tokenizer import prompt_ids


class ChatError(ValueError):
    """What was asked for cannot be answered; the message says what to change."""


@dataclass(frozen=True)
class TextChat:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    thinks: bool
    max_new_tokens: int

    def reply(self, prompt: str) -> Iterator[str]:
        """Lines: the thought, if there is one, then the answer."""
        ids = chat_prompt(self.tokenizer, prompt)
        if not self.thinks:
            ids += known_tags(self.tokenizer)
        (generated,) = generate_replies(self.model, self.tokenizer, [ids], max_new_tokens=self.max_new_tokens)
        yield from told(generated.text, has_thought=self.thinks)


def chat_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The user's turn under the checkpoint's own template; without a template, the text after the token that begins one.

    Raises ChatError for a text that the tokenizer has no tokens for.
    """
    if tokenizer.chat_template:
        return prompt_ids(tokenizer, [{"role": "user", "content": prompt}])
    begin: Any = tokenizer.bos_token_id
    try:
        ids = tokenizer.encode(prompt, add_special_tokens=False)
    except Exception as error:  # tokenizers has no type of its own for it
        raise ChatError(f"prompt: wanted a text that the checkpoint's tokenizer knows, got {prompt!r} ({error})") from error
    return [*([] if begin is None else [begin]), *ids]


def known_tags(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`<think></think>`; nothing where the tokenizer has no such tokens: a checkpoint without them does not think anyway."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[tag] for tag in (OPEN, CLOSE)] if {OPEN, CLOSE} <= vocabulary.keys() else []


def told(text: str, *, has_thought: bool) -> Iterator[str]:
    """The thought up to its last `</think>`, and what comes after it."""
    thought, closed, answer = text.rpartition(CLOSE)
    if has_thought and (closed or OPEN in text):
        thought = thought if closed else text
        yield f"thought   {' '.join(thought.removeprefix(OPEN).split())}"
        if not closed:
            yield "          (not closed)"
    if closed or not has_thought or OPEN not in text:
        yield f"answer    {answer.strip()}"
