"""A phase that trains under Prefect's own handling of SIGTERM: a cancel can be told from a crash, and the step is saved before either."""

import os
import signal
import time
from pathlib import Path

import pytest
from prefect.exceptions import TerminationSignal
from prefect.utilities.engine import can_ack_control_intent, capture_sigterm

from tests.trlm_core.trm.tiny_phases import make_run, make_schedule, make_table
from tests.trlm_core.trm.tiny_thinker import make_model
from trlm_core.training.saves import SAVES, newest_step
from trlm_core.trm.controls import PauseModule
from trlm_core.trm.interruptible import interruptible
from trlm_core.trm.phase_trainer import PhaseProgress, run_phase


def test_a_phase_leaves_prefect_s_handler_in_place_and_saves_before_it_ends(tmp_path: Path) -> None:
    """Where another handler stood in its place, Prefect would not hear of the cancel, and the run would be Crashed."""
    module, can_be_cancelled = PauseModule(make_model(), make_table(), make_schedule(12), seed=5), []

    def cancel_after_five(progress: PhaseProgress) -> None:
        can_be_cancelled.append(can_ack_control_intent())
        if progress.done == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.0)  # until the main thread has heard it

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # to which Prefect hands the signal on, once it is done with it
    try:
        with pytest.raises(TerminationSignal), capture_sigterm():
            interruptible(lambda is_stopped: run_phase(module, make_run(tmp_path, on_progress=cancel_after_five, is_stopped=is_stopped)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert can_be_cancelled == [True] * 5
    assert newest_step(tmp_path / SAVES) == module.steps_done == 5
