"""A task is tried again where that can help, and only there."""

import errno

from prefect import flow, task
from prefect.testing.utilities import prefect_test_harness

from tasks.retries import if_it_can_go_on, unless_mistaken
from trlm_core.training.errors import OutOfMemoryError, RendezvousError, TrainingFailedError, TrainingKilledError


def tries(error: Exception, condition) -> int:
    seen = []

    @task(retries=2, retry_delay_seconds=0, retry_condition_fn=condition)
    def failing() -> None:
        seen.append(1)
        raise error

    @flow
    def run() -> None:
        failing(return_state=True)

    run(return_state=True)
    return len(seen)


def test_mistakes_are_not_tried_again_and_kills_are():
    with prefect_test_harness(server_startup_timeout=180):
        assert tries(ValueError("a wrong recipe"), unless_mistaken) == 1
        assert tries(ConnectionError("the network"), unless_mistaken) == 3
        assert tries(OSError(errno.ENOSPC, "a full disk"), unless_mistaken) == 1
        assert tries(TrainingKilledError("SIGKILL"), if_it_can_go_on) == 3
        assert tries(RendezvousError("a node that did not come"), if_it_can_go_on) == 2
        assert tries(OutOfMemoryError("too many tokens"), if_it_can_go_on) == 3
        assert tries(TrainingFailedError("not finite"), if_it_can_go_on) == 1
