"""Phase 1: what it trains, what its losses are, and that its end fits the statistics."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.trlm_core.trm.tiny_phases import make_phase1, make_rows, make_table
from tests.trlm_core.trm.tiny_thinker import TOKENS, make_model
from trlm_core.trm.answers import Writing, exact, write_answers
from trlm_core.trm.latent_norm import deviation
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.phase1 import Phase1Module, phase1_metrics
from trlm_core.trm.phase_rows import RowTable, latents_of, live_states
from trlm_core.trm.thought_data import ThoughtRow, collate
from trlm_core.trm.thought_losses import (
    ReadThought,
    answer_loss,
    centred_state_r2,
    drawn_columns,
    read_ids,
    relative_error,
    text_answer_logits,
)


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


def losses_at(latent_noise: float, seed: int) -> dict[str, float]:
    model = unfitted()
    recipe = make_phase1().model_copy(update={"latent_noise": latent_noise})
    module = Phase1Module(model, make_table(24), live_states(model), recipe, seed=0)
    torch.manual_seed(seed)
    return {name: float(each) for name, each in module.step_loss(step=5).metrics.items()}


def test_noise_moves_the_losses_that_read_a_thought_and_not_those_of_identity():
    still, noisy, otherwise = losses_at(0.0, seed=1), losses_at(0.5, seed=1), losses_at(0.5, seed=2)
    changed = {name for name in still if still[name] != noisy[name]}
    assert changed == {"loss_token", "loss_answer", "loss_kl"} == {name for name in noisy if noisy[name] != otherwise[name]}
    assert losses_at(0.0, seed=2) == still


def test_noise_is_measured_in_the_latents_own_deviation():
    latents_NMd = torch.randn(500, 4, 8) * torch.arange(1.0, 9.0) + 100 * torch.randn(4, 8)
    torch.testing.assert_close(deviation(latents_NMd), torch.arange(1.0, 9.0), rtol=0.1, atol=0)


def test_a_thought_s_loss_is_that_of_the_token_after_each_position():
    model, batch = make_model(), collate(make_rows(3), TOKENS)
    latents_BMd = torch.randn(3, 4, 16)
    logits_BCV = model.read(latents_BMd, batch.thought_mask_BC)
    by_hand = [
        functional.cross_entropy(logits_BCV[b, j], batch.thought_ids_BC[b, j + 1])
        for b in range(3)
        for j in range(int(batch.thought_mask_BC[b].sum()) - 1)
    ]
    unshifted = torch.cat(
        [
            functional.cross_entropy(logits_BCV[b][m], batch.thought_ids_BC[b][m], reduction="none")
            for b, m in enumerate(batch.thought_mask_BC)
        ]
    )
    loss = ReadThought.of(model, latents_BMd, batch).loss().item()
    assert loss == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)
    assert loss != pytest.approx(unshifted.mean().item(), rel=1e-3)


LONG = [ThoughtRow((1, 5, 2), tuple(4 + number % 10 for number in range(length)), (7, TOKENS.eos)) for length in (40, 3)]


def test_of_a_long_thought_some_tokens_are_read_which_the_seed_draws_and_no_pad_among_them():
    model, batch = make_model(), collate(LONG, TOKENS)
    latents_BMd, read = torch.randn(2, 4, 16), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        read.append(ReadThought.of(model, latents_BMd, batch, most=8))
    assert read[0].logits_BKV.shape == (2, 8, 24)
    assert read[0].mask_BK.sum(dim=1).tolist() == [8, 3]
    assert read[0].loss() == read[1].loss() != read[2].loss()
    whole = ReadThought.of(model, latents_BMd, batch)
    losses = functional.cross_entropy(whole.logits_BKV.flatten(0, 1), whole.ids_BK.flatten(), reduction="none")[whole.mask_BK.flatten()]
    drawn = functional.cross_entropy(read[0].logits_BKV.flatten(0, 1), read[0].ids_BK.flatten(), reduction="none")[
        read[0].mask_BK.flatten()
    ]
    assert all((losses - each).abs().min() < 1e-4 for each in drawn), "each is a token of the thought under its own logits"


def test_the_drawn_columns_are_each_once_in_order_and_all_come_in_their_turn():
    mask_BC = torch.tensor([[True] * 12, [True] * 5 + [False] * 7])
    seen: set[int] = set()
    for seed in range(20):
        torch.manual_seed(seed)
        columns_BK = drawn_columns(mask_BC, 6)
        assert columns_BK[0].tolist() == sorted(set(columns_BK[0].tolist()))
        assert set(range(5)) <= set(columns_BK[1].tolist())
        seen |= set(columns_BK[0].tolist())
    assert seen == set(range(12))


def test_where_there_is_room_for_all_nothing_is_drawn():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert drawn_columns(torch.ones(2, 6, dtype=torch.bool), 6).tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert torch.equal(torch.get_rng_state(), before)


def test_a_thought_is_read_piece_by_piece_as_it_is_read_at_once():
    model, batch = make_model(), collate(LONG, TOKENS)
    latents_BMd, widths = torch.randn(2, 4, 16), []
    model.base.lm_head.register_forward_hook(lambda part, given, out: widths.append(out.shape[1]))
    ids_BC = read_ids(model, latents_BMd, batch.thought_mask_BC, at_once=16)
    assert widths == [16, 16, 9]
    assert torch.equal(ids_BC, model.read(latents_BMd, batch.thought_mask_BC).argmax(dim=-1))


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
    widths: list[int] = []
    model.base.lm_head.register_forward_hook(lambda part, given, out: widths.append(out.shape[1]))
    together = text_answer_logits(model, collate(rows, TOKENS))
    assert widths == [2 + 4], "the head reads the answers' columns and the ends of four lengths of thought, and no prompt"
    for b, row in enumerate(rows):
        ids = torch.tensor([[*row.prompt, *row.thought, TOKENS.end_think, *row.answer]])
        alone = model.base(input_ids=ids).logits[0, -len(row.answer) - 1 : -1]
        assert torch.allclose(together[b, : len(row.answer)], alone, atol=1e-4)


def test_one_pass_over_prompt_and_thought_gives_the_states_of_either():
    model, rows = make_model(), make_rows(5)
    batch = collate(rows, TOKENS)
    read = live_states(model)([], batch)
    prompt = model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
    assert torch.allclose(read.pre_BLD[batch.prompt_mask_BL], prompt.h_BLD[batch.prompt_mask_BL], atol=1e-5)
    for b, row in enumerate(rows):
        ids_1S = torch.tensor([[*row.prompt, *row.thought, TOKENS.end_think]])
        alone_CD = model.encode(ids_1S, torch.ones_like(ids_1S))[0, len(row.prompt) :]
        assert torch.allclose(read.post_BCD[b][batch.thought_mask_BC[b]], alone_CD, atol=1e-5)


def test_a_table_pads_some_of_its_rows_as_if_they_were_all():
    rows = make_rows(8)
    picked, alone = RowTable.of(rows, TOKENS).batch([4, 0]), collate([rows[4], rows[0]], TOKENS)
    assert torch.equal(picked.prompt_ids_BL, alone.prompt_ids_BL)
    assert torch.equal(picked.prompt_mask_BL, alone.prompt_mask_BL)
    assert torch.equal(picked.thought_ids_BC, alone.thought_ids_BC)
    assert torch.equal(picked.answer_mask_BA, alone.answer_mask_BA)


def test_rows_go_together_as_far_as_their_padded_tokens_allow():
    table = RowTable.of([LONG[0], LONG[1], LONG[1], LONG[1], LONG[0]], TOKENS)  # 46 and 9 positions
    assert [some for some, _ in table.batches(tokens=92)] == [[0, 1], [2, 3], [4]]
    assert [some for some, _ in table.batches(numbers=[4, 1, 2], tokens=45)] == [[4], [1, 2]]
    assert all(batch.thought_ids_BC.numel() <= 92 for _, batch in table.batches(tokens=92))
    assert [len(some) for some, _ in make_table(70).batches()] == [64, 6]


def test_latents_in_files_are_those_in_memory(tmp_path: Path):
    model, table = make_model(), make_table(10)
    memory, files = (latents_of(model, table, live_states(model), [7, 2, 5], folder) for folder in (None, tmp_path))
    assert torch.equal(memory.pre_NMd, files.pre_NMd)
    assert torch.equal(memory.post_NMd, files.post_NMd)
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {
        f"latents-{name}.bin": 3 * 4 * 16 * 4 for name in ("pre", "post")
    }


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
