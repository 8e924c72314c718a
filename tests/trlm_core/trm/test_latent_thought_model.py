"""A language model that thinks in latents: thoughts reach its answers, nothing leaks, and a row is the same alone and in a batch."""

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from tests.trlm_core.trm.tiny_thinker import BOS, END, EOS, LORA, TOKENS, D, M, V, left, make_config, make_llama, make_model, right
from trlm_core.trm.hidden_states import plain
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.think_tokens import ThinkTokens

THINK = TOKENS.think
PROMPT = [BOS, 5, 6, THINK]
ANSWER = [9, 10, EOS]
ROW = [*PROMPT, 7, 8, END, *ANSWER]


def loss_of(model: LatentThoughtModel, rows: list[list[int]]) -> torch.Tensor:
    ids_BL, mask_BL = right(rows)
    loss = model(ids_BL, mask_BL, labels=ids_BL).loss
    assert loss is not None
    return loss


def test_a_loss_changes_with_the_weights_of_the_trm():
    model = make_model()
    before = loss_of(model, [ROW]).item()
    with torch.no_grad():
        model.thinker.trm.core.net.blocks[0].get_parameter("feed_forward.down.weight").mul_(3.0)
    assert abs(loss_of(model, [ROW]).item() - before) > 1e-5


def test_every_weight_on_the_way_from_prompt_to_answer_gets_a_gradient():
    model = make_model()
    loss_of(model, [ROW, [BOS, 11, THINK, 4, END, 12, EOS]]).backward()
    silent = [name for name, weight in model.thinker.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert all(name.startswith(("expander.", "trm.core.halt_head.")) for name in silent), silent  # neither is part of an answer


def test_an_evaluation_forward_and_generate_call_the_trm_and_a_zeroed_thought_changes_the_logits():
    model = make_model()
    ids_BL, mask_BL = right([ROW])
    with_thought = model(ids_BL, mask_BL).logits_BLV[:, -3:]
    assert model.trm_calls == 1
    with torch.no_grad():
        model.thinker.projector.scale.zero_()
        assert not torch.allclose(model(ids_BL, mask_BL).logits_BLV[:, -3:], with_thought, atol=1e-3)


def test_answer_logits_have_a_gradient_for_the_thought():
    model = make_model()
    prompt = model.encode_prompt(*left([PROMPT]))
    u_BMD = torch.randn(1, M, D, requires_grad=True)
    model.answer_logits(prompt, u_BMD, torch.tensor([ANSWER]))[0, -1].max().backward()
    assert u_BMD.grad is not None
    assert u_BMD.grad.abs().sum(dim=-1).min() > 0


def test_the_loss_is_the_cross_entropy_of_each_answer_token_under_the_logits_before_it():
    model = make_model()
    thought = model.think(model.encode_prompt(*left([PROMPT])))
    logits_AV = model.answer_logits(model.encode_prompt(*left([PROMPT])), thought.u_BMD, torch.tensor([ANSWER]))[0]
    by_hand = -torch.stack([logits_AV[j].log_softmax(-1)[token] for j, token in enumerate(ANSWER)]).mean()
    unshifted = functional.cross_entropy(logits_AV[1:], torch.tensor(ANSWER[:-1]))
    assert loss_of(model, [ROW]).item() == pytest.approx(by_hand.item(), abs=1e-5)
    assert abs(loss_of(model, [ROW]).item() - unshifted.item()) > 1e-3


def test_labels_of_prompt_thought_and_end_tag_count_for_nothing_and_the_end_of_turn_counts_though_it_is_the_pad():
    model = make_model()
    ids_BL, mask_BL = right([ROW, [BOS, THINK, END, 4, EOS]])
    labels_BL = ids_BL.masked_fill(mask_BL == 0, -100)
    only_answers_BL = torch.full_like(labels_BL, -100)
    only_answers_BL[0, -3:] = torch.tensor(ANSWER)
    only_answers_BL[1, 3:5] = torch.tensor([4, EOS])
    assert torch.equal(model(ids_BL, mask_BL, labels=labels_BL).loss, model(ids_BL, mask_BL, labels=only_answers_BL).loss)
    without_end_BL = only_answers_BL.clone()
    without_end_BL[0, -1] = without_end_BL[1, 4] = -100
    assert not torch.equal(model(ids_BL, mask_BL, labels=without_end_BL).loss, model(ids_BL, mask_BL, labels=labels_BL).loss)


@pytest.mark.parametrize("length", [1, 2, M - 1, M, 3 * M])
def test_prompts_shorter_and_longer_than_the_latents_have_a_finite_loss(length: int):
    model = make_model()
    row = [*([BOS, 5, 6, 7] * length)[: length - 1], THINK, END, 9, EOS]
    ids_BL, mask_BL = right([row])
    output = model(ids_BL, mask_BL, labels=ids_BL)
    assert torch.isfinite(output.loss)
    assert output.logits_BLV.shape == (1, len(row), V)


def test_a_thought_in_text_and_an_answer_never_reach_the_latents():
    model = make_model()
    prompt = model.encode_prompt(*right([ROW]))
    for at in range(len(PROMPT), len(ROW)):
        changed = [*ROW[:at], 13, *ROW[at + 1 :]]
        assert torch.equal(model.encode_prompt(*right([changed])).h_BLD[prompt.mask_BL], prompt.h_BLD[prompt.mask_BL])
        ids_BL, mask_BL = right([changed])
        if at < len(PROMPT) + 2:  # the thought's own text: latents stand in its place
            assert torch.allclose(model(ids_BL, mask_BL).logits_BLV[0, -3:], model(*right([ROW])).logits_BLV[0, -3:], atol=1e-5)


def test_rows_without_think_get_the_logits_of_the_language_model_alone():
    model, plain_row = make_model(), [BOS, 5, 6, 7, 8]
    ids_BL, mask_BL = right([plain_row, ROW])
    alone_BLV = plain(model.base)(torch.tensor([plain_row])).logits
    assert torch.allclose(model(ids_BL, mask_BL).logits_BLV[:1, :5], alone_BLV, atol=1e-5)


def test_a_batch_of_mixed_lengths_gives_each_row_what_it_gets_alone():
    model = make_model()
    rows = [ROW, [BOS, THINK, 4, END, 11, EOS], [BOS, 5, 6, 7, 8, 9, 10, THINK, END, 4, EOS]]
    together = model(*right(rows)).logits_BLV
    padded_left = model(*left(rows)).logits_BLV
    for b, row in enumerate(rows):
        alone_LV = model(*right([row])).logits_BLV[0]
        assert torch.allclose(together[b, : len(row)], alone_LV, atol=1e-4)
        assert torch.allclose(padded_left[b, -len(row) :], alone_LV, atol=1e-4)


def test_the_cached_path_gives_the_logits_of_the_whole_pass_and_leaves_the_cache_as_it_was():
    model = make_model()
    ids_BL, mask_BL = left([PROMPT, [BOS, 5, 6, 7, 8, THINK]])
    prompt, answers_BA = model.encode_prompt(ids_BL, mask_BL), torch.tensor([ANSWER, [4, 5, EOS]])
    u_BMD = model.think(prompt).u_BMD
    first = model.answer_logits(prompt, u_BMD, answers_BA)
    again = model.answer_logits(prompt, u_BMD, answers_BA)
    whole_BSD = torch.cat([prompt.embeds_BLD, model.continue_after(u_BMD, answers_BA[:, :-1])], dim=1)
    mask_BS = torch.cat([mask_BL, torch.ones(2, M + 3, dtype=torch.long)], dim=1)
    positions_BS = (mask_BS.cumsum(1) - 1).clamp(min=0)
    whole = model.base(inputs_embeds=whole_BSD, attention_mask=mask_BS, position_ids=positions_BS).logits[:, -3:]
    assert torch.equal(first, again)
    assert torch.allclose(first, whole, atol=1e-4)
    assert prompt.cache is not None
    assert prompt.cache.get_seq_length() == ids_BL.shape[1]


def test_all_padding_in_a_row_does_not_make_nan_of_its_neighbours():
    model = make_model()
    ids_BL, mask_BL = right([ROW, ROW])
    mask_BL[1] = 0
    loss = model(ids_BL, mask_BL, labels=ids_BL.masked_fill(mask_BL == 0, -100)).loss
    assert loss.item() == pytest.approx(loss_of(model, [ROW]).item(), abs=1e-5)


def test_no_label_at_all_is_a_loss_of_0_not_nan():
    ids_BL, mask_BL = right([PROMPT])
    assert make_model()(ids_BL, mask_BL, labels=ids_BL).loss.item() == 0.0


def test_a_float32_thinker_works_on_a_bfloat16_language_model_without_autocast():
    model = make_model(make_llama(dtype=torch.bfloat16))
    loss = loss_of(model, [ROW])
    loss.backward()
    assert torch.isfinite(loss)
    assert model.thinker.projector.linear.weight.grad is not None
    assert model.thinker.projector.linear.weight.grad.dtype == torch.float32


def test_another_hidden_size_than_the_bases_is_refused():
    wider = LlamaForCausalLM(LlamaConfig(vocab_size=V, hidden_size=64, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match=r"hidden_size: wanted 64 .*got 32"):
        LatentThoughtModel(wider, make_config(), TOKENS)


def test_a_context_that_is_full_is_an_error_when_thoughts_are_appended():
    model = make_model(make_llama(max_positions=12))
    prompt = model.encode_prompt(*left([[BOS, 5, 6, 7, 8, THINK]]))
    with pytest.raises(ValueError, match=r"context: wanted at most 12 positions .*got 6 of the prompt \+ 4 latents \+ 3 after them"):
        model.answer_logits(prompt, torch.zeros(1, M, D), torch.tensor([ANSWER]))


def test_slide_drops_nothing_for_a_thought_that_is_none():
    model = make_model(make_llama(max_positions=12), insertion="slide")
    prompt = model.encode_prompt(*left([[BOS, 5, 6, 7, 8, 9, 10, 11, 12, THINK]]))
    with pytest.raises(ValueError, match=r"got 10 of the prompt \+ 0 latents \+ 3 after them"):
        model.answer_logits(prompt, torch.zeros(1, 0, D), torch.tensor([ANSWER]))


def test_slide_keeps_the_length_and_the_sink_and_drops_the_oldest():
    model = make_model(make_llama(max_positions=16), insertion="slide", sink_tokens=2)
    rows = [[BOS, 5, 6, 7, 8, 9, 10, 11, 12, THINK], [BOS, 5, THINK]]
    prompt = model.encode_prompt(*left(rows))
    window_BL = model.window(prompt, 4, room=3)
    assert window_BL.int().tolist() == [[1, 1, 0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]]
    assert int(window_BL[0].sum()) + M == len(rows[0])
    answers_BA, u_BMD = torch.tensor([ANSWER, ANSWER]), torch.zeros(2, M, D)
    shorter = model.encode_prompt(*left([[BOS, 5, 10, 11, 12, THINK]]))
    slid_BAV = model.answer_logits(prompt, u_BMD, answers_BA)
    assert torch.allclose(slid_BAV[:1], model.answer_logits(shorter, u_BMD[:1], answers_BA[:1]), atol=1e-4)


def test_with_lora_the_states_of_pass_1_are_the_bases_own_and_pass_2_sees_the_adapters():
    model = make_model(make_llama(), lora=LORA)
    before_BLD, base_BLD = model.encode_prompt(*left([PROMPT])).h_BLD, make_model().encode_prompt(*left([PROMPT])).h_BLD
    logits = model.answer_logits(model.encode_prompt(*left([PROMPT])), torch.zeros(1, M, D), torch.tensor([ANSWER]))
    with torch.no_grad():
        for name, weight in model.base.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                weight.add_(0.3)
    assert torch.allclose(before_BLD, base_BLD, atol=1e-6)
    assert torch.equal(model.encode_prompt(*left([PROMPT])).h_BLD, before_BLD)
    changed = model.answer_logits(model.encode_prompt(*left([PROMPT])), torch.zeros(1, M, D), torch.tensor([ANSWER]))
    assert not torch.allclose(changed, logits, atol=1e-3)


def test_under_lora_only_adapters_and_the_two_tags_train():
    model = make_model(make_llama(), lora=LORA)
    trainable = {name.split(".")[-2] for name, weight in model.base.named_parameters() if weight.requires_grad}
    assert trainable == {"default", "trainable_tokens_delta"}
    model.answer_logits(model.encode_prompt(*left([PROMPT])), torch.zeros(1, M, D), torch.tensor([ANSWER])).sum().backward()
    grads = {name: weight.grad for name, weight in model.base.named_parameters() if weight.grad is not None}
    assert any("trainable_tokens" in name for name in grads)


def test_lora_on_a_table_that_lacks_the_tags_is_refused():
    with pytest.raises(ValueError, match="wanted rows for <think> 90 and </think> 91, got 24; resize before LoRA"):
        LatentThoughtModel(make_llama(), make_config(lora=LORA), ThinkTokens(90, 91, 0, 0))
