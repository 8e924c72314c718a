"""An interruption waits until the work has saved what is done; nobody's handler is replaced, and a second one does not wait."""

import contextvars
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from trlm_core.training.errors import StoppedError
from trlm_core.trm.interruptible import IsStopped, interruptible


class CancelledHereError(BaseException):
    """What a handler of SIGTERM raises that knows what a cancelled run is."""


def cancel(number: int, frame: FrameType | None) -> None:
    raise CancelledHereError


@pytest.fixture
def handled() -> Iterator[None]:
    """SIGTERM raises CancelledHereError, Ctrl-C what it does in Python, whatever started the tests."""
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, cancel),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def told(number: signal.Signals, saved: list[str], ends_with: BaseException | None = None) -> Callable[[IsStopped], None]:
    """Work that is sent the signal within a step, makes that step to its end, hears of it, saves and stops."""

    def work(is_stopped: IsStopped) -> None:
        assert not is_stopped()
        os.kill(os.getpid(), number)
        time.sleep(1.0)  # the rest of the step
        assert is_stopped()
        saved.append("the step")
        raise ends_with or StoppedError("stopped after step 5")

    return work


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, CancelledHereError), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_waits_until_what_is_under_way_is_saved(number: signal.Signals, raised: type[BaseException], handled: None):
    saved: list[str] = []
    with pytest.raises(raised):
        interruptible(told(number, saved))
    assert saved == ["the step"]


def test_whoever_handles_sigterm_goes_on_handling_it_meanwhile(handled: None):
    assert interruptible(lambda is_stopped: signal.getsignal(signal.SIGTERM)) is cancel


def test_where_nobody_handles_sigterm_the_work_is_stopped_all_the_same(handled: None):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    saved: list[str] = []
    with pytest.raises(StoppedError, match="asked to stop by SIGTERM; what is done is saved, run it again to go on"):
        interruptible(told(signal.SIGTERM, saved))
    assert saved == ["the step"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored(handled: None):
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def work(is_stopped: IsStopped) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return is_stopped()

    assert interruptible(work) is False


def test_a_second_signal_does_not_wait_for_the_step(handled: None):
    let_go = threading.Event()

    def work(is_stopped: IsStopped) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while not is_stopped():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        let_go.wait(30)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interruptible(work)
    let_go.set()
    assert time.monotonic() - began < 10


def test_what_fails_while_it_stops_is_told(handled: None, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR), pytest.raises(CancelledHereError):
        interruptible(told(signal.SIGTERM, [], ends_with=OSError("no room for the save")))
    assert "asked to stop, and what was under way failed: no room for the save" in caplog.text


def test_an_undisturbed_work_gives_its_result_or_its_error(handled: None):
    assert interruptible(lambda is_stopped: (7, is_stopped())) == (7, False)
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda is_stopped: 1 / 0)


def test_the_work_has_the_context_of_who_asks_for_it(handled: None):
    variable = contextvars.ContextVar("variable", default="nobody's")
    variable.set("the caller's")
    assert interruptible(lambda is_stopped: variable.get()) == "the caller's"
