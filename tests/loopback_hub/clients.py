"""Clients of the loopback Hub: the real ones, in a process that takes it for the Hub, and a bare connection.

The real ones read HF_ENDPOINT when they are imported, and the tests' own process is offline.
"""

import contextlib
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.loopback_hub.letters import NAME
from tests.loopback_hub.server import LoopbackHub

Client = Callable[..., Any]  # client("tell(1 + 1)", HF_TOKEN="...") -> 2
PRELUDE = f"""
import json, time
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem

NAME, PATH = "{NAME}", "datasets/{NAME}@main/data/a.parquet"
api, fs = HfApi(), HfFileSystem()

def tell(value):
    print(json.dumps(value))

def range_of(start, end):
    with fs.open(PATH, block_size=1, cache_type="none") as file:
        return list(file._fetch_range(start, end))

def failure(call):
    try:
        call()
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        return [type(error).__name__, status]
    return None
"""


def told_by_client(hub: LoopbackHub, home: Path, code: str, environment: dict[str, str]) -> Any:
    """What the code tells at last."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    hubs = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    command = [sys.executable, "-c", PRELUDE + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean | hubs | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def connected(hub: LoopbackHub) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)) as connection:
        yield connection


def got(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str], method: str = "GET"
) -> tuple[http.client.HTTPResponse, bytes]:
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer, answer.read()
