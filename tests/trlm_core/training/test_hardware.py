"""Hardware: what a device takes at once, and nothing that would change a number."""

from typing import Any

import pytest
import torch

from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import ReportedExecution
from trlm_core.training.hardware import detect_hardware, usable_cores

REPORTED = ReportedExecution(per_device_train_batch_size=32, gradient_accumulation_steps=4, gradient_checkpointing=True, save_steps=300)


def test_a_cpu_takes_small_micro_batches_and_recomputes_no_activation():
    hardware = detect_hardware(Execution(device="cpu"), REPORTED)
    assert (hardware.device, hardware.tokens_per_micro_batch, hardware.activation_checkpointing) == ("cpu", 512, False)


def test_a_gpu_starts_from_the_report_s_execution(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    hardware = detect_hardware(Execution(device="cuda"), REPORTED)
    assert (hardware.tokens_per_micro_batch, hardware.activation_checkpointing) == (32 * 4096, True)
    assert not detect_hardware(Execution(device="cuda"), None).activation_checkpointing


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_layers_are_compiled_only_where_somebody_asks_for_it(device: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert [detect_hardware(Execution(device=device, compile=asked), REPORTED).compile for asked in (False, True)] == [False, True]


def test_the_user_s_budget_wins():
    assert detect_hardware(Execution(device="cpu", tokens_per_micro_batch=77), None).tokens_per_micro_batch == 77


def test_threads_are_the_cores_unless_the_user_says_otherwise():
    assert detect_hardware(Execution(device="cpu"), None).threads == usable_cores()
    assert detect_hardware(Execution(device="cpu", threads=1), None).threads == 1


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has an accelerator")
def test_auto_is_the_cpu_where_there_is_nothing_else():
    assert detect_hardware(Execution(), None).device == "cpu"
