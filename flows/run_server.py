"""A Prefect server for one run, where the user has set none: `python -m flows.run_server PORT PARENT` is its process.

Prefect would start one itself, but later and imported into this process as well: this one starts while the run is still being imported.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from flows.health import answers
from trlm_core.training.watch import ProcessAddress, end_with

START_SECONDS = 180  # a first start creates the database: 20 s on a quiet machine
STOP_SECONDS = 20  # it writes down what it was told last
POLL_SECONDS = 0.1


@contextlib.contextmanager
def run_server() -> Iterator[Callable[[], None]]:
    """Yields a function that returns once the API answers; inside, Prefect's API is this server's."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with contextlib.ExitStack() as ending:  # from the last line to the first
        if PREFECT_API_URL.value():  # the user's own server
            ending.callback(_end_loops)
            yield lambda: None
            return
        port = _free_port()
        process = subprocess.Popen([sys.executable, "-m", "flows.run_server", str(port), ProcessAddress.here().model_dump_json()])
        ending.callback(_stop, process)
        ending.callback(_end_loops)
        ending.enter_context(temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}))
        ending.callback(_send_what_is_left)
        yield lambda: _wait(process, port)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    began = time.monotonic()
    while not answers(f"http://127.0.0.1:{port}/api/health"):
        if process.poll() is not None:
            raise RuntimeError(f"Prefect's server ended with {process.returncode} before it answered; what it said stands above")
        if time.monotonic() - began > START_SECONDS:
            raise RuntimeError(
                f"Prefect's server on port {port}: wanted an answer in {START_SECONDS} s, got none; see `prefect server start`"
            )
        time.sleep(POLL_SECONDS)


def _send_what_is_left() -> None:
    """Prefect sends logs and events in batches, and the last ones as late as at the interpreter's end."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()
    EventsWorker.drain_all(timeout=STOP_SECONDS)


def _end_loops() -> None:
    """Prefect leaves its event loops to the interpreter's end, where duckdb calls all that their threads still hold leaked: in 60 lines."""
    from prefect._internal.concurrency.threads import get_global_loop, get_run_sync_loop

    for loop in (get_global_loop(), get_run_sync_loop()):
        loop.shutdown()
        loop.thread.join(STOP_SECONDS)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(port: str, parent: str) -> None:
    end_with(ProcessAddress.model_validate_json(parent))
    os.environ["PREFECT__SERVER_EPHEMERAL"] = "1"  # no schedules, no page: `prefect server start` has them
    os.environ["PREFECT__SERVER_FINAL"] = "1"
    import uvicorn

    uvicorn.run("prefect.server.api.server:create_app", factory=True, host="127.0.0.1", port=int(port), log_level="error", lifespan="on")


if __name__ == "__main__":
    main(*sys.argv[1:])
