"""Replies in batches are the replies one by one, in the order of their prompts."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trlm_core.inference.generate import Generated, generate_replies

PROMPTS = ["What is 4 + 3?", "4", "Keep numbers larger than 5: 3, 8, 9", "the tree", "What is the capital of France? Which of them?"]


@pytest.fixture
def prompts(tiny_tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [[1, *tiny_tokenizer.encode(text, add_special_tokens=False)] for text in PROMPTS]


@pytest.fixture
def replies(tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase) -> Callable[..., list[Generated]]:
    return lambda prompts, **options: generate_replies(tiny_model, tiny_tokenizer, prompts, **{"max_new_tokens": 12, **options})


@pytest.mark.parametrize("sequences", [None, 2, 3])
def test_batched_greedy_replies_are_those_one_by_one_in_the_order_of_the_prompts(
    sequences: int | None, prompts: list[list[int]], replies: Callable[..., list[Generated]]
):
    alone = [replies([prompt])[0] for prompt in prompts]
    assert len({reply.text for reply in alone}) > 1
    assert replies(prompts, sequences_per_batch=sequences) == alone
    assert replies(prompts[::-1], sequences_per_batch=sequences) == alone[::-1]


def test_a_reply_is_the_greedy_continuation_token_by_token(
    prompts: list[list[int]], replies: Callable, tiny_model: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerBase
):
    ids = list(prompts[0])
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(tiny_model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert 2 not in ids[len(prompts[0]) :]
    (reply,) = replies(prompts[:1], max_new_tokens=5)
    assert reply == Generated(str(tiny_tokenizer.decode(ids[len(prompts[0]) :])), tokens=5, ended=False)


def test_a_reply_that_reaches_the_limit_has_not_ended(prompts: list[list[int]], replies: Callable[..., list[Generated]]):
    assert [(reply.tokens, reply.ended) for reply in replies(prompts, max_new_tokens=3)] == [(3, False)] * len(prompts)


def test_a_reply_that_ends_its_turn_has_ended_and_its_text_stops_before_the_end(
    prompts: list[list[int]], replies: Callable[..., list[Generated]], tiny_model: PreTrainedModel
):
    _say(tiny_model, 2)
    assert replies(prompts) == [Generated("", tokens=1, ended=True)] * len(prompts)


def test_a_reply_keeps_its_special_tokens(prompts: list[list[int]], replies: Callable[..., list[Generated]], tiny_model: PreTrainedModel):
    _say(tiny_model, 1)
    assert replies(prompts[:1], max_new_tokens=2) == [Generated("<|im_start|><|im_start|>", tokens=2, ended=False)]


def test_the_batches_done_are_told_as_they_end(prompts: list[list[int]], replies: Callable[..., list[Generated]]):
    done: list[int] = []
    replies(prompts, sequences_per_batch=2, on_batch=done.append)
    assert done == [2, 2, 1]


def test_no_prompts_give_no_replies(replies: Callable[..., list[Generated]]):
    assert replies([]) == []


def _say(model: PreTrainedModel, token: int) -> None:
    """Make the model say this token and no other, whatever it was asked."""
    forward = model.lm_head.forward  # type: ignore[union-attr]

    def always(hidden: torch.Tensor) -> torch.Tensor:
        logits = forward(hidden)  # type: ignore[operator]
        logits[..., token] = 1e6
        return logits

    model.lm_head.forward = always  # type: ignore[union-attr, assignment]
