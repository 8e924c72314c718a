"""Phase 1: what it trains, what its losses are, and that its end fits the statistics."""

import pytest
import torch
from torch.nn import functional

from tests.trlm_core.trm.tiny_phases import make_phase1, make_rows, make_table
from tests.trlm_core.trm.tiny_thinker import TOKENS, make_model
from trlm_core.trm.answers import Writing, exact, write_answers
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.phase1 import Phase1Metrics, Phase1Module, phase1_metrics, reaches_text
from trlm_core.trm.phase_rows import RowTable, latents_of, live_states
from trlm_core.trm.thought_data import collate
from trlm_core.trm.thought_losses import answer_loss, centred_state_r2, relative_error, text_answer_logits, thought_loss


def unfitted() -> LatentThoughtModel:
    model = make_model()
    model.thinker.trm.norm.fitted.fill_(False)
    return model


def make_module(rows: int = 24, kl: float = 0.5) -> Phase1Module:
    model = unfitted()
    return Phase1Module(model, make_table(rows), live_states(model), make_phase1(kl=kl), seed=0)


def test_compressor_expander_and_projector_are_trained_and_nothing_else():
    module = make_module()
    trained = {name.split(".")[2] + "." + name.split(".")[3] for name, each in module.named_parameters() if each.requires_grad}
    assert trained == {
        "trm.compressor",
        *("expander.anchors_Ad", "expander.waves", "expander.attention", "expander.out"),
        *("projector.linear", "projector.scale"),
    }


def test_every_trained_parameter_has_a_gradient_once_the_thought_s_losses_are_on():
    module = make_module()
    module.step_loss(step=5).loss.backward()
    assert [name for name, weight in module.trained.items() if weight.grad is None or not weight.grad.any()] == []


def test_the_first_steps_are_of_identity_alone():
    module = make_module()
    assert set(module.step_loss(step=2).metrics) == {"loss_identity_pre", "loss_identity_post"}
    assert set(module.step_loss(step=3).metrics) == {"loss_identity_pre", "loss_identity_post", "loss_token", "loss_answer", "loss_kl"}


def test_a_loss_of_no_weight_is_not_computed():
    assert "loss_kl" not in make_module(kl=0.0).step_loss(step=5).metrics


def test_the_loss_is_the_weighted_sum():
    made = make_module().step_loss(step=5)
    parts = {name: float(each) for name, each in made.metrics.items()}
    by_hand = (
        parts["loss_identity_pre"] + parts["loss_identity_post"] + parts["loss_token"] + 0.5 * (parts["loss_answer"] + parts["loss_kl"])
    )
    assert made.loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_a_thought_s_loss_is_that_of_the_token_after_each_position():
    batch = collate(make_rows(3), TOKENS)
    logits_BCV = torch.randn(*batch.thought_ids_BC.shape, 24)
    by_hand = [
        functional.cross_entropy(logits_BCV[b, j], batch.thought_ids_BC[b, j + 1])
        for b in range(3)
        for j in range(int(batch.thought_mask_BC[b].sum()) - 1)
    ]
    unshifted = torch.stack(
        [functional.cross_entropy(logits_BCV[b][m], batch.thought_ids_BC[b][m]) for b, m in enumerate(batch.thought_mask_BC)]
    )
    assert thought_loss(logits_BCV, batch).item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)
    assert thought_loss(logits_BCV, batch).item() != pytest.approx(unshifted.mean().item(), rel=1e-3)


def test_pads_count_for_nothing_and_an_eos_that_is_the_pad_s_id_does():
    batch = collate(make_rows(4), TOKENS)
    logits_BAV = torch.zeros(*batch.answer_ids_BA.shape, 24)
    logits_BAV[~batch.answer_mask_BA] = float("nan")
    assert answer_loss(logits_BAV, batch).item() == pytest.approx(torch.tensor(24.0).log().item(), rel=1e-5)
    logits_BAV[..., TOKENS.eos] = 5.0
    ends = collate(make_rows(1), TOKENS)
    assert answer_loss(logits_BAV[:1], ends) < answer_loss(-logits_BAV[:1], ends)


def test_a_row_s_own_mean_state_scores_nothing():
    h_BSD, mask_BS = torch.randn(2, 9, 8) + 4.0, torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    constant_BSD = h_BSD[mask_BS].mean(dim=0).expand_as(h_BSD)
    assert centred_state_r2(constant_BSD, h_BSD, mask_BS).item() == pytest.approx(0.0, abs=1e-5)
    assert centred_state_r2(h_BSD, h_BSD, mask_BS).item() == 1.0
    assert functional.cosine_similarity(constant_BSD[mask_BS], h_BSD[mask_BS]).mean() > 0.9
    assert relative_error(torch.full_like(h_BSD, h_BSD[mask_BS].mean().item()), h_BSD, mask_BS).item() == pytest.approx(1.0, rel=1e-4)


def test_answers_after_a_thought_in_text_are_what_the_language_model_says_of_each_row_alone():
    model, rows = make_model(), make_rows(5)
    together = text_answer_logits(model, collate(rows, TOKENS))
    for b, row in enumerate(rows):
        ids = torch.tensor([[*row.prompt, *row.thought, TOKENS.end_think, *row.answer]])
        alone = model.base(input_ids=ids).logits[0, -len(row.answer) - 1 : -1]
        assert torch.allclose(together[b, : len(row.answer)], alone, atol=1e-4)


def test_one_pass_over_prompt_and_thought_gives_the_states_of_either():
    model, batch = make_model(), collate(make_rows(5), TOKENS)
    read = live_states(model)([], batch)
    prompt = model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
    post_BCD = model.thought_states(batch.prompt_ids_BL, batch.prompt_mask_BL, batch.thought_ids_BC, batch.thought_mask_BC)
    assert torch.allclose(read.pre_BLD[batch.prompt_mask_BL], prompt.h_BLD[batch.prompt_mask_BL], atol=1e-5)
    assert torch.allclose(read.post_BCD[batch.thought_mask_BC], post_BCD[batch.thought_mask_BC], atol=1e-5)


def test_a_table_pads_some_of_its_rows_as_if_they_were_all():
    rows = make_rows(8)
    picked, alone = RowTable.of(rows, TOKENS).batch([4, 0]), collate([rows[4], rows[0]], TOKENS)
    assert torch.equal(picked.prompt_ids_BL, alone.prompt_ids_BL)
    assert torch.equal(picked.prompt_mask_BL, alone.prompt_mask_BL)
    assert torch.equal(picked.thought_ids_BC, alone.thought_ids_BC)
    assert torch.equal(picked.answer_mask_BA, alone.answer_mask_BA)


def test_the_end_fits_the_statistics_on_as_many_rows_as_the_recipe_says():
    module = make_module(rows=1_000)
    module.finish()
    norm = module.model.thinker.trm.norm
    assert bool(norm.fitted)
    latents = latents_of(module.model, module.table, module.states)
    standardised = norm.standardise_post(latents.post_NMd)
    assert standardised.mean().abs() < 1e-3
    assert standardised.square().mean().item() == pytest.approx(1.0, abs=1e-2)


def test_too_few_rows_for_the_statistics_are_an_error():
    with pytest.raises(ValueError, match="norm_examples: wanted 1,000 rows, got 24"):
        make_module().finish()


def test_metrics_are_of_all_rows_and_the_oracle_s_answers_are_decoded():
    model = make_model()
    metrics = phase1_metrics(model, make_table(70), live_states(model))
    assert metrics.rows == 70
    assert metrics.r2_post < 0.5
    assert 0.0 <= metrics.token_accuracy < 0.5
    assert metrics.oracle_accuracy == 0.0


def test_the_gate_is_a_share_of_what_thoughts_in_text_reach():
    metrics = Phase1Metrics(100, 0.1, 0.1, 0.9, 0.9, 0.9, oracle_accuracy=0.82)
    assert reaches_text(metrics, text_accuracy=0.9, share=0.9)
    assert not reaches_text(metrics, text_accuracy=0.92, share=0.9)


@pytest.mark.parametrize("n_latents", [0, 4])
def test_written_answers_are_those_of_the_likeliest_tokens_one_by_one(n_latents: int):
    model, batch = make_model(), collate(make_rows(6), TOKENS)
    u_BMD = model.thinker.embed_thought(torch.randn(6, 4, 16)).detach()[:, :n_latents]
    prompt = model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
    written = write_answers(model, prompt, u_BMD, Writing(5, temperature=None))
    for b, answer in enumerate(written):
        alone = model.encode_prompt(batch.prompt_ids_BL[b : b + 1], batch.prompt_mask_BL[b : b + 1])
        logits_BAV = model.answer_logits(alone, u_BMD[b : b + 1], torch.tensor([answer]))
        assert logits_BAV.argmax(dim=-1)[0].tolist() == list(answer)
        assert len(answer) == 5 or answer[-1] == TOKENS.eos


def test_an_answer_is_right_to_its_last_token():
    rows = make_rows(1)
    assert exact([rows[0].answer], rows) == [True]
    assert exact([rows[0].answer[:-1]], rows) == [False]
