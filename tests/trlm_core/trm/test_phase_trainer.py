"""Running a phase: killed and resumed it ends in the same bits, saves are whole and without the language model, and a bad loss stops it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.trlm_core.trm.tiny_phases import make_phase1, make_phase2, make_phase3, make_run, make_schedule, make_table
from tests.trlm_core.trm.tiny_thinker import make_model
from trlm_core.training.errors import BadStepError, StoppedError
from trlm_core.trm.controls import PauseModule
from trlm_core.trm.phase1 import Phase1Module
from trlm_core.trm.phase2 import Phase2Module
from trlm_core.trm.phase3 import Phase3Module
from trlm_core.trm.phase_module import PhaseModule, StepLoss
from trlm_core.trm.phase_rows import latents_of, live_states
from trlm_core.trm.phase_trainer import CHECKPOINT, PhaseProgress, Precision, run_phase
from trlm_core.trm.rewards import is_as_long

STEPS = 12


def make_module(phase: str) -> PhaseModule:
    model, table = make_model(), make_table()
    if phase == "phase1":
        return Phase1Module(model, table, live_states(model), make_phase1(STEPS), seed=5)
    if phase == "phase2":
        return Phase2Module(model, table, latents_of(model, table, live_states(model)), make_phase2(STEPS), seed=5)
    if phase == "phase3":
        return Phase3Module(model, table, is_as_long, make_phase3(STEPS), max_new_tokens=4, seed=5)
    return PauseModule(model, table, make_schedule(STEPS), seed=5)


def weights(module: PhaseModule) -> dict[str, torch.Tensor]:
    averages = {f"average of {name}": each for name, each in module.average.weights.items()}
    return {name: each.detach().clone() for name, each in module.state_dict().items()} | averages


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name, each in one.items() if not torch.equal(each, other[name])] == []


CHILD = """
import sys, time
from pathlib import Path
import torch
from tests.trlm_core.trm.test_phase_trainer import make_module
from tests.trlm_core.trm.tiny_phases import make_run
from trlm_core.trm.phase_trainer import run_phase
torch.set_num_threads(1)
run_phase(make_module(sys.argv[1]), make_run(Path(sys.argv[2]), save_steps=2, on_progress=lambda progress: time.sleep(0.1)))
"""


@pytest.mark.parametrize(("phase", "kill_after"), [("phase2", 9), ("phase3", 5)])
def test_a_phase_that_is_killed_goes_on_to_the_same_bits(phase: str, kill_after: int, tmp_path: Path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = make_module(phase)
        history = run_phase(whole, make_run(tmp_path / "whole"))
        _run_and_kill(phase, tmp_path / "cut", kill_after)
        resumed = make_module(phase)
        resumed_history = run_phase(resumed, make_run(tmp_path / "cut"))
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(weights(whole), weights(resumed))
    assert resumed_history == history
    assert [line["step"] for line in history] == [*range(1, STEPS + 1)]


def _run_and_kill(phase: str, workspace: Path, kill_after: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, phase, str(workspace)], stderr=subprocess.PIPE)
    history, ends = workspace / "history.jsonl", time.monotonic() + 60
    while not history.exists() or len(history.read_text().splitlines()) < kill_after:
        assert child.poll() is None, child.stderr.read().decode() if child.stderr else ""
        assert time.monotonic() < ends
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert sorted(path.name for path in (workspace / "saves").iterdir()), "the test needs a save to go on from"


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_matmuls_are_in_the_run_s_precision_and_weights_in_float32(precision: Precision, dtype: torch.dtype, tmp_path: Path):
    module, seen = make_module("phase1"), set()
    linear = module.model.thinker.expander.out
    linear.register_forward_hook(lambda part, given, out: seen.add(out.dtype))
    run_phase(module, make_run(tmp_path, precision=precision))
    assert seen == {dtype}
    assert linear.weight.dtype == torch.float32


@pytest.mark.parametrize("phase", ["phase1", "phase2", "phase3", "pause"])
def test_a_stop_saves_what_is_done_and_the_next_run_ends_in_the_same_bits(phase: str, tmp_path: Path):
    whole, stopped, resumed = (make_module(phase) for _ in range(3))
    run_phase(whole, make_run(tmp_path / "whole"))
    with pytest.raises(StoppedError, match="stopped after step 5 of 12"):
        run_phase(stopped, make_run(tmp_path / "cut", is_stopped=lambda: stopped.steps_done >= 5))
    run_phase(resumed, make_run(tmp_path / "cut"))
    assert_same_bits(weights(whole), weights(resumed))


def test_a_phase_that_is_done_is_not_trained_again(tmp_path: Path):
    first, second = make_module("pause"), make_module("pause")
    history = run_phase(first, make_run(tmp_path))
    steps: list[int] = []
    assert run_phase(second, make_run(tmp_path, on_progress=lambda progress: steps.append(progress.done))) == history
    assert steps == []
    assert_same_bits(weights(first), weights(second))


def test_a_damaged_save_is_passed_over_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    first, second = make_module("phase2"), make_module("phase2")
    with pytest.raises(StoppedError):
        run_phase(first, make_run(tmp_path, save_steps=3, is_stopped=lambda: first.steps_done >= 6))
    newest = tmp_path / "saves" / "step-000006" / CHECKPOINT
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    steps: list[int] = []
    run_phase(second, make_run(tmp_path, on_progress=lambda progress: steps.append(progress.done)))
    assert steps[0] == 4
    assert "step-000006 is damaged and is passed over" in caplog.text
    whole = make_module("phase2")
    run_phase(whole, make_run(tmp_path / "whole"))
    assert_same_bits(weights(whole), weights(second))


def test_a_save_has_every_weight_but_the_language_model_s_and_loads_as_weights_only(tmp_path: Path):
    module = make_module("phase2")
    run_phase(module, make_run(tmp_path))
    saved = torch.load(tmp_path / "saves" / "step-000012" / CHECKPOINT, weights_only=True)
    assert not [name for name in saved["state_dict"] if ".base." in name]
    assert {name for name in module.state_dict() if ".base." not in name} == saved["state_dict"].keys()
    assert saved["phase"]["average"].keys() == module.average.weights.keys()


def test_a_checkpoint_without_one_of_our_weights_is_an_error(tmp_path: Path):
    module = make_module("phase2")
    run_phase(module, make_run(tmp_path))
    saved = torch.load(tmp_path / "saves" / "step-000012" / CHECKPOINT, weights_only=True)
    del saved["state_dict"]["model.thinker.trm.slots_Md"]
    with pytest.raises(ValueError, match=r"got none for model\.thinker\.trm\.slots_Md"):
        module.on_load_checkpoint(saved)


def test_no_more_saves_are_kept_than_the_run_says_and_none_is_left_half_written(tmp_path: Path):
    run_phase(make_module("pause"), make_run(tmp_path, save_steps=2, keep_saves=2))
    assert sorted(path.name for path in (tmp_path / "saves").iterdir()) == ["step-000010", "step-000012"]
    assert not (tmp_path / "aside").exists()


def test_saves_are_made_by_time_too(tmp_path: Path):
    module = make_module("pause")
    run_phase(module, make_run(tmp_path, save_steps=None, save_seconds=0.0, keep_saves=20))
    assert len([*(tmp_path / "saves").iterdir()]) == STEPS


class Exploding(PauseModule):
    def step_loss(self, step: int) -> StepLoss:
        made = super().step_loss(step)
        return StepLoss(made.loss * float("nan"), made.metrics) if step == 3 else made


def test_a_loss_that_is_not_finite_stops_the_phase_and_names_its_step(tmp_path: Path):
    module = Exploding(make_model(), make_table(), make_schedule(STEPS), seed=5)
    with pytest.raises(BadStepError, match="Exploding, step 4: wanted a loss that is finite, got nan"):
        run_phase(module, make_run(tmp_path, save_steps=2))
    assert module.get_parameter("pause_MD").isfinite().all()
    assert sorted(path.name for path in (tmp_path / "saves").iterdir()) == ["step-000002"]


def test_a_state_out_of_range_is_an_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    class Loud(PauseModule):
        def step_loss(self, step: int) -> StepLoss:
            return StepLoss(super().step_loss(step).loss, state_rms=torch.tensor(488.0 if step == 3 else 1.0))

    history = run_phase(Loud(make_model(), make_table(), make_schedule(STEPS), seed=5), make_run(tmp_path))
    assert caplog.text.count("wanted a state_rms from 0.3 to 3.0, got 488") == 1
    assert [line["state_rms"] for line in history][2:5] == [1.0, 488.0, 1.0]


def test_the_average_is_its_closed_form_with_a_decay_that_warms_up(tmp_path: Path):
    module = make_module("phase2")
    name = "model.thinker.trm.slots_Md"
    average, seen = module.get_parameter(name).detach().clone(), []

    def follow(progress: PhaseProgress) -> None:
        decay = min(0.9, progress.done / (9 + progress.done))
        average.mul_(decay).add_(module.get_parameter(name).detach(), alpha=1 - decay)
        seen.append(decay)

    run_phase(module, make_run(tmp_path, on_progress=follow))
    assert seen[0] == 0.1
    assert torch.allclose(module.average.weights[name.replace(".", "/")], average, atol=1e-6)
    assert not torch.allclose(module.get_parameter(name), average, atol=1e-6), "what is trained is not the average"
    module.finish()
    assert torch.allclose(module.model.thinker.state_dict()["trm.slots_Md"], average, atol=1e-6), "what is exported is the average"


def test_every_step_is_one_optimizer_step_at_the_schedule_s_rate(tmp_path: Path):
    module = make_module("phase2")
    history = run_phase(module, make_run(tmp_path))
    saved = torch.load(tmp_path / "saves" / "step-000012" / CHECKPOINT, weights_only=True)
    assert saved["global_step"] == STEPS
    assert {int(each["step"]) for each in saved["optimizer_states"][0]["state"].values()} == {STEPS}
    assert [line["learning_rate"] for line in history] == [module.schedule.rate_at(step) for step in range(STEPS)]


def test_progress_tells_how_far_it_is(tmp_path: Path):
    told: list[PhaseProgress] = []
    run_phase(make_module("pause"), make_run(tmp_path, log_steps=5, on_progress=told.append))
    assert [(each.done, each.steps) for each in told] == [(5, 12), (10, 12), (12, 12)]
    assert told[-1].seconds_left == 0.0
    assert told[0].seconds_left is not None
    assert told[0].seconds_left > 0
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12]


def test_the_language_model_stays_in_evaluation_mode(tmp_path: Path):
    module, modes = make_module("phase2"), []
    run_phase(module, make_run(tmp_path, on_progress=lambda progress: modes.append((module.training, module.model.base.training))))
    assert set(modes) == {(True, False)}
