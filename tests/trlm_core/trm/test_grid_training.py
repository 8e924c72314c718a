"""Training on grids: one optimizer step a supervision step, slots that refill by themselves, and a twin without recursion."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from trlm_core.trm.config import RecursionConfig
from trlm_core.trm.grid_training import GridRecipe, GridTrainer, grid_loss, rate_at
from trlm_core.trm.grid_trm import GridTRM, answer_grids, is_solved, without_recursion
from trlm_core.trm.puzzles import Puzzles, joined
from trlm_core.trm.sudoku import N_CELLS, N_TOKENS, draw_puzzles, split_grids

CONFIG = RecursionConfig(32, 4, 2, 2, 2, 3, 0.1, 0.25)
RECIPE = GridRecipe(
    optimizer_steps=6,
    batch=8,
    learning_rate=2e-3,
    final_rate_share=0.1,
    warmup_steps=2,
    weight_decay=0.1,
    max_gradient_norm=1.0,
    ema_decay=0.9,
    seed=0,
    precision="float32",
)


def make_model(config: RecursionConfig = CONFIG) -> GridTRM:
    torch.manual_seed(0)
    return GridTRM(config, N_TOKENS, N_CELLS)


def puzzles_of_train(count: int) -> Puzzles:
    return draw_puzzles(split_grids().train, count, [6], seed=0)


def test_every_supervision_step_is_one_optimizer_step():
    model, calls = make_model(), []
    model.core.net.register_forward_hook(lambda *_: calls.append(1))
    trainer = GridTrainer(model, puzzles_of_train(20), RECIPE)
    trainer.train()
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {6}
    assert len(calls) == 6 * 2 * (2 + 1)


def test_every_parameter_gets_a_gradient_and_moves():
    model = make_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    GridTrainer(model, puzzles_of_train(20), RECIPE).train()
    assert [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])] == []


def test_a_slot_keeps_its_example_until_it_is_done_then_takes_another():
    model = make_model(replace(CONFIG, halt_exploration_prob=0.0))
    trainer, ages, rows = GridTrainer(model, puzzles_of_train(20), RECIPE), [], []
    for _ in range(4):
        trainer.step()
        ages.append(trainer.carry.steps_B.tolist())
        rows.append(trainer.rows_B.tolist())
    assert ages == [[1] * 8, [2] * 8, [3] * 8, [1] * 8]  # at the start no head is content: N steps each
    assert rows[0] == rows[1] == rows[2] != rows[3]


def test_a_head_that_is_content_frees_its_slot_at_once():
    model = make_model(replace(CONFIG, halt_exploration_prob=0.0))
    with torch.no_grad():
        model.core.halt_head.bias.fill_(50.0)
    trainer = GridTrainer(model, puzzles_of_train(20), RECIPE)
    trainer.step()
    assert trainer.carry.done_B.all()


def test_what_training_hands_back_is_the_average_not_the_raw_weights():
    model = make_model()
    trainer = GridTrainer(model, puzzles_of_train(20), RECIPE)
    exported = trainer.train().state_dict()
    assert all(torch.equal(each, trainer.average.weights[name]) for name, each in exported.items())
    assert not torch.equal(exported["out.weight"], model.out.weight)


def test_the_same_seed_trains_to_the_same_bits():
    puzzles = puzzles_of_train(20)
    first, second = (GridTrainer(make_model(), puzzles, RECIPE).train().state_dict() for _ in range(2))
    assert all(torch.equal(each, second[name]) for name, each in first.items())


def test_without_recursion_there_are_the_same_parameters_and_four_layer_passes():
    direct, calls = make_model(without_recursion(CONFIG)), []
    for block in direct.core.net.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    assert {name: each.shape for name, each in direct.named_parameters()} == {n: p.shape for n, p in make_model().named_parameters()}
    answer_grids(direct, torch.zeros(1, N_CELLS, dtype=torch.long), steps=1)
    assert len(calls) == 4


def test_the_loss_is_cross_entropy_of_the_cells_and_half_of_the_halting_head_s():
    logits_BLV = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]]))
    right = grid_loss(logits_BLV, torch.tensor([0.0]), torch.tensor([[0, 1]]))
    assert right.item() == pytest.approx((0.6931 + 0.2877) / 2 + 0.5 * 0.6931, abs=1e-3)
    confident = grid_loss(logits_BLV, torch.tensor([9.0]), torch.tensor([[0, 2]]))  # one cell is wrong, so the row is
    assert confident.item() == pytest.approx((0.6931 + 2.0794) / 2 + 0.5 * 9.0, abs=1e-3)


def test_the_rate_climbs_then_falls_to_its_share():
    assert [round(rate_at(RECIPE, step) * 1e3, 2) for step in range(6)] == [1.0, 2.0, 2.0, 1.4, 0.8, 0.2]


def test_a_row_s_answer_does_not_depend_on_its_neighbours():
    model, puzzles = make_model(), puzzles_of_train(6)
    together, alone = answer_grids(model, puzzles.given_NL, steps=3), answer_grids(model, puzzles.given_NL[2:3], steps=3)
    assert torch.equal(together.tokens_SBL[:, 2], alone.tokens_SBL[:, 0])


def test_a_few_puzzles_are_learned_by_heart():
    puzzles = puzzles_of_train(8)
    recipe = replace(RECIPE, optimizer_steps=150, learning_rate=3e-3)
    trained = GridTrainer(make_model(), puzzles, recipe).train()
    assert is_solved(answer_grids(trained, puzzles.given_NL, steps=3), puzzles.solved_NL)[-1].all()


def mirrored_where_the_coin_says(puzzles: Puzzles, generator: torch.Generator) -> Puzzles:
    is_mirrored = bool(torch.rand(1, generator=generator) < 0.5)
    return Puzzles(puzzles.given_NL.flip(1), puzzles.solved_NL.flip(1)) if is_mirrored else puzzles


def test_a_training_that_was_cut_off_goes_on_to_the_same_bits():
    puzzles, recipe = puzzles_of_train(20), replace(RECIPE, optimizer_steps=8)
    whole = GridTrainer(make_model(), puzzles, recipe, mirrored_where_the_coin_says)
    first = GridTrainer(make_model(), puzzles, recipe, mirrored_where_the_coin_says)
    for _ in range(5):  # in the middle of examples, which get 3 steps each
        first.step()
    state = first.state()
    first.step()  # the state stays what it was
    torch.manual_seed(1)
    second = GridTrainer(GridTRM(CONFIG, N_TOKENS, N_CELLS), puzzles, recipe, mirrored_where_the_coin_says)
    second.restore(state)
    wanted, got = whole.train().state_dict(), second.train().state_dict()
    assert all(torch.equal(each, got[name]) for name, each in wanted.items())
    second.restore(state)  # which no steps have changed: neither of who gave it nor of who took it
    assert all(torch.equal(each, wanted[name]) for name, each in second.train().state_dict().items())
    assert not torch.equal(first.model.out.weight, second.model.out.weight)


def test_a_slot_shows_its_example_in_one_guise_until_it_is_done_and_then_it_may_be_another():
    puzzles = puzzles_of_train(1)
    trainer, seen = GridTrainer(make_model(replace(CONFIG, halt_exploration_prob=0.0)), puzzles, RECIPE, mirrored_where_the_coin_says), []
    for _ in range(30):
        trainer.step()
        seen.append(trainer.examples.given_NL)
    for start in range(0, 30, 3):  # no head is content: three steps each
        assert torch.equal(seen[start], seen[start + 1])
        assert torch.equal(seen[start], seen[start + 2])
    guises = joined([puzzles, Puzzles(puzzles.given_NL.flip(1), puzzles.solved_NL.flip(1))])
    assert len(torch.cat(seen).unique(dim=0)) == len(guises.given_NL.unique(dim=0)) == 2


def test_bfloat16_trains_float32_weights_to_about_the_same_loss():
    puzzles = puzzles_of_train(20)
    exact = GridTrainer(make_model(), puzzles, RECIPE)
    mixed = GridTrainer(make_model(), puzzles, replace(RECIPE, precision="bf16_mixed"))
    pairs = [(exact.step(), mixed.step()) for _ in range(6)]
    assert all(abs(a - b) < 0.05 * a for a, b in pairs)
    assert any(a != b for a, b in pairs)
    assert {weight.dtype for weight in mixed.model.parameters()} == {torch.float32}
    assert mixed.carry.y_BLD.dtype == torch.float32


class Kept:
    """A tensor that a graph keeps for its backward; the bytes of all that live now, and the most that ever did."""

    alive = peak = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.bytes = tensor, tensor.numel() * tensor.element_size()
        Kept.alive += self.bytes
        Kept.peak = max(Kept.peak, Kept.alive)

    def __del__(self) -> None:
        Kept.alive -= self.bytes


def peak_of_kept_bytes(config: RecursionConfig, steps: int) -> int:
    trainer = GridTrainer(
        make_model(replace(config, halt_exploration_prob=0.0)), puzzles_of_train(20), replace(RECIPE, optimizer_steps=steps)
    )
    Kept.peak = Kept.alive = 0
    with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        trainer.train()
    assert trainer.carry.steps_B.tolist() == [config.n_supervision_steps] * 8  # the examples did get their N steps
    return Kept.peak


def test_memory_of_deep_supervision_grows_neither_with_n_supervision_steps_nor_with_deep_recursions():
    peak = peak_of_kept_bytes(replace(CONFIG, n_supervision_steps=2), steps=2)
    assert peak_of_kept_bytes(replace(CONFIG, n_supervision_steps=16), steps=16) == peak
    assert peak_of_kept_bytes(replace(CONFIG, n_supervision_steps=2, n_deep_recursions=6), steps=2) == peak
    assert peak_of_kept_bytes(replace(CONFIG, n_supervision_steps=2, n_latent_steps=4), steps=2) > 1.4 * peak  # what it does grow with


def test_what_a_step_keeps_for_its_backward_grows_with_the_number_of_cells_and_not_with_their_pairs():
    core, kept = make_model().core, []
    for cells in (32, 64, 128):
        Kept.peak = Kept.alive = 0
        with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            core.step(torch.randn(2, cells, 32), *core.init_state(torch.randn(2, cells, 32)))
        kept.append(Kept.peak)
    assert kept[2] - kept[1] == 2 * (kept[1] - kept[0]) > 0
