"""What a TRM reads: the prompt up to `<think>`, and never what comes after it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trlm_core.trm.compressor import LatentAttentionCompressor
from trlm_core.trm.config import HiddenStateConfig, RecursionConfig
from trlm_core.trm.spans import prompt_mask, thought_mask

PAD, THINK, END = 2, 6, 7


def test_a_prompt_ends_with_its_think_and_a_thought_with_its_end():
    ids_BL = torch.tensor([[PAD, 3, 4, THINK, 5, 5, END, 8]])
    mask_BL = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]])
    assert prompt_mask(ids_BL, mask_BL, THINK).int().tolist() == [[0, 1, 1, 1, 0, 0, 0, 0]]
    assert thought_mask(ids_BL, mask_BL, THINK, END).int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 0]]


def test_a_row_without_think_has_no_prompt_and_no_thought():
    ids_BL, mask_BL = torch.tensor([[3, 4, 5, END]]), torch.ones(1, 4)
    assert not prompt_mask(ids_BL, mask_BL, THINK).any()
    assert not thought_mask(ids_BL, mask_BL, THINK, END).any()


def test_a_thought_that_is_not_closed_goes_to_the_row_s_last_token():
    ids_BL, mask_BL = torch.tensor([[3, THINK, 5, 5, PAD]]), torch.tensor([[1, 1, 1, 1, 0]])
    assert thought_mask(ids_BL, mask_BL, THINK, END).int().tolist() == [[0, 0, 1, 1, 0]]


def test_pads_are_told_by_the_mask_though_the_pad_is_end_of_turn_too():
    ids_BL, mask_BL = torch.tensor([[PAD, PAD, 3, THINK]]), torch.tensor([[0, 1, 1, 1]])
    assert prompt_mask(ids_BL, mask_BL, THINK).int().tolist() == [[0, 1, 1, 1]]


def test_a_later_think_moves_nothing():
    ids_BL, mask_BL = torch.tensor([[3, THINK, THINK, END, 5]]), torch.ones(1, 5)
    assert prompt_mask(ids_BL, mask_BL, THINK).int().tolist() == [[1, 1, 0, 0, 0]]
    assert thought_mask(ids_BL, mask_BL, THINK, END).int().tolist() == [[0, 0, 1, 1, 0]]


def test_no_token_after_think_reaches_the_latents_of_the_prompt():
    torch.manual_seed(0)
    lm_config = LlamaConfig(vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    lm = LlamaForCausalLM(lm_config).eval()
    compressor = LatentAttentionCompressor(HiddenStateConfig(32, 4, RecursionConfig(16, 2, 1, 1, 1, 1, 0.0, 0.25)))

    def latents(ids: list[int]) -> torch.Tensor:
        ids_BL = torch.tensor([ids])
        with torch.no_grad():
            h_BLD = lm(ids_BL, output_hidden_states=True).hidden_states[-1]
            return compressor(h_BLD, prompt_mask(ids_BL, torch.ones_like(ids_BL), THINK))

    before = latents([3, 9, 4, THINK, 5, 5, END, 8])
    for at in range(4, 8):
        changed = [3, 9, 4, THINK, 5, 5, END, 8]
        changed[at] = 11
        assert torch.equal(latents(changed), before)
    assert not torch.equal(latents([3, 9, 10, THINK, 5, 5, END, 8]), before)
