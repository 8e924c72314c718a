"""What is shown of a thought is the thought that the model has."""

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.trlm_core.trm.tiny_thinker import END, V, left, make_model
from trlm_core.trm.thought_reading import likeliest_length, read_thoughts_out, thought_steps

PROMPTS = [[1, 5, 6, 2], [1, 7, 2]]


def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0")))


@torch.no_grad()
def test_each_step_is_the_thought_that_so_many_steps_give():
    model = make_model()
    prompt = model.encode_prompt(*left(PROMPTS))
    for number, step in enumerate(thought_steps(model, prompt, 4), start=1):
        thought = model.think(prompt, number, halting=False)
        assert torch.equal(step.v_BMd, thought.v_BMd)
        assert torch.equal(step.q_logits_B, thought.q_logits_BS[:, -1])


@torch.no_grad()
def test_a_thought_is_read_up_to_its_end_and_begins_with_a_blank():
    model = make_model()
    v_BMd = torch.zeros(2, 4, 16)
    mask_BC = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    words = [text.split() for text in read_thoughts_out(model, v_BMd, mask_BC, tokenizer())]
    logits_BCV = model.read(model.thinker.trm.norm.unstandardise_post(v_BMd), mask_BC)
    expected = logits_BCV[0].argmax(dim=-1).tolist()[:4]
    until_end = expected[: expected.index(END)] if END in expected else expected
    assert "".join(words[0]) == "_" + "".join(f"w{token}" for token in until_end)
    assert len(words[1]) <= 2, "its last position says what comes after </think>"


@torch.no_grad()
def test_the_length_is_the_one_at_whose_end_the_thought_is_closed():
    model = make_model()

    def closed_at_6(latents_BMd: torch.Tensor, mask_BC: torch.Tensor) -> torch.Tensor:
        logits_BCV = torch.zeros(*mask_BC.shape, V)
        logits_BCV[..., END] = -8.0
        if mask_BC.shape[1] >= 6:
            logits_BCV[:, 4, END] = 8.0
        return logits_BCV

    model.read = closed_at_6  # type: ignore[method-assign]
    assert likeliest_length(model, torch.zeros(1, 4, 16)) == 6
