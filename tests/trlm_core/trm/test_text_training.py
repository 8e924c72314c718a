"""Training on thoughts as text: which tokens carry the loss, and that an interrupted training ends with the same weights."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from trlm_core.recipes.trm_schema import Schedule, TrainedLlamaBase
from trlm_core.training.errors import BadStepError
from trlm_core.trm import text_training
from trlm_core.trm.base_llama import new_llama
from trlm_core.trm.sudoku_thoughts import sudoku_tokenizer
from trlm_core.trm.text_training import History, TextTraining, text_batch, train_on_text
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import ThoughtRow

TOKENS = ThinkTokens.of(sudoku_tokenizer())  # <think> 6, </think> 7, </s> 8, <pad> 9
ROWS = [ThoughtRow((5, 1, 0, 6), (1, 2), (1, 2, 8)), ThoughtRow((5, 3, 6), (3,), (3, 8))]
SCHEDULE = Schedule(
    steps=8, batch=2, learning_rate=1e-2, final_rate_share=0.1, warmup_steps=2, weight_decay=0.1, betas=(0.9, 0.95), max_gradient_norm=1.0
)
TRAINING = TextTraining(SCHEDULE, thought_share=0.5, seed=1)


@pytest.fixture
def llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    return new_llama(TrainedLlamaBase(kind="trained_llama", **sizes, thought_share=0.5, training=SCHEDULE), sudoku_tokenizer(), seed=3)


def test_with_its_thought_a_row_has_labels_from_the_thought_on_and_none_on_pads():
    batch = text_batch(ROWS, TOKENS, with_thought=True)
    assert batch.ids_BL.tolist() == [[5, 1, 0, 6, 1, 2, 7, 1, 2, 8], [5, 3, 6, 3, 7, 3, 8, 9, 9, 9]]
    assert batch.labels_BL.tolist() == [[-100] * 4 + [1, 2, 7, 1, 2, 8], [-100] * 3 + [3, 7, 3, 8] + [-100] * 3]
    assert batch.mask_BL.sum(dim=1).tolist() == [10, 7]


def test_without_its_thought_a_row_has_labels_on_its_answer_alone():
    batch = text_batch(ROWS, TOKENS, with_thought=False)
    assert batch.ids_BL.tolist() == [[5, 1, 0, 6, 7, 1, 2, 8], [5, 3, 6, 7, 3, 8, 9, 9]]
    assert batch.labels_BL.tolist() == [[-100] * 5 + [1, 2, 8], [-100] * 4 + [3, 8, -100, -100]]


def test_an_eos_that_is_the_pad_keeps_its_label():
    tokens = ThinkTokens(think=6, end_think=7, pad=8, eos=8)
    assert text_batch(ROWS, tokens, with_thought=True).labels_BL[1].tolist() == [-100] * 3 + [3, 7, 3, 8] + [-100] * 3


@pytest.mark.parametrize(("share", "steps"), [(0.0, ""), (0.5, "1357"), (0.25, "37"), (1.0, "01234567")])
def test_steps_with_a_thought_are_spread_evenly(share: float, steps: str):
    training = TextTraining(SCHEDULE, thought_share=share, seed=1)
    assert "".join(str(step) for step in range(8) if training.has_thought(step)) == steps


def test_the_rate_climbs_to_its_peak_and_falls_to_its_last_share():
    assert [round(SCHEDULE.rate_at(step), 4) for step in range(8)] == [0.005, 0.01, 0.01, 0.0082, 0.0064, 0.0046, 0.0028, 0.001]


def test_training_lowers_the_loss_and_tells_every_step(llama: LlamaForCausalLM, tmp_path: Path):
    told: list[tuple[int, int]] = []
    history = train_on_text(llama, ROWS, TOKENS, TRAINING, tmp_path, lambda done, total: told.append((done, total)))
    assert [line["step"] for line in history] == [*range(1, 9)]
    assert history[-1]["loss"] < history[1]["loss"] - 0.3
    assert told == [(step, 8) for step in range(1, 9)]


def test_a_training_that_was_cut_off_goes_on_to_the_same_weights(llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_training, "STEPS_PER_SAVE", 3)
    start = {name: weight.clone() for name, weight in llama.state_dict().items()}
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = _trained(llama, tmp_path / "whole")
    uninterrupted = {name: weight.clone() for name, weight in llama.state_dict().items()}

    llama.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        _trained(llama, tmp_path / "cut", stop_after=5)
    llama.load_state_dict(start)  # a new process knows nothing but the file
    assert _trained(llama, tmp_path / "cut") == whole
    for name, weight in llama.state_dict().items():
        assert torch.equal(weight, uninterrupted[name]), name


def test_slow_steps_are_saved_before_there_are_many(llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_training, "SECONDS_PER_SAVE", 0.0)
    with pytest.raises(KeyboardInterrupt):
        _trained(llama, tmp_path, stop_after=2)
    assert len(torch.load(tmp_path / text_training.SAVE, weights_only=True)["history"]) == 2


def test_ctrl_c_waits_for_the_step_s_save_whatever_saves_are_due(llama: LlamaForCausalLM, tmp_path: Path):
    before, told = signal.signal(signal.SIGINT, signal.default_int_handler), []
    start = {name: weight.clone() for name, weight in llama.state_dict().items()}

    def interrupt(done: int, total: int) -> None:
        told.append(done)
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)  # until the main thread has heard it

    try:
        with pytest.raises(KeyboardInterrupt):
            train_on_text(llama, ROWS, TOKENS, TRAINING, tmp_path, interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == [1, 2, 3, 4], "the step that was under way is done"
    llama.load_state_dict(start)
    train_on_text(llama, ROWS, TOKENS, TRAINING, tmp_path, lambda done, total: told.append(done))
    assert told == [*range(1, 9)], "and is not done again"


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_moves(llama: LlamaForCausalLM, tmp_path: Path):
    weights = dict(llama.named_parameters())
    with torch.no_grad():
        weights["model.embed_tokens.weight"][5] = float("nan")
    before = weights["model.layers.0.mlp.up_proj.weight"].clone()
    with pytest.raises(BadStepError, match="step 1: wanted finite numbers, got a loss of nan"):
        train_on_text(llama, ROWS, TOKENS, TRAINING, tmp_path, lambda done, total: None)
    assert torch.equal(weights["model.layers.0.mlp.up_proj.weight"], before)


def _trained(llama: LlamaForCausalLM, workspace: Path, stop_after: int = 100) -> History:
    def stop(done: int, total: int) -> None:
        if done == stop_after:
            raise KeyboardInterrupt

    return train_on_text(llama, ROWS, TOKENS, TRAINING, workspace, stop)
