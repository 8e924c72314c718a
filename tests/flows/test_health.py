"""The health check of `trlm up` and of the containers."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest


def health(url: str) -> int:
    return subprocess.run([sys.executable, "-m", "flows.health", url], capture_output=True, check=False).returncode


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(int(self.path.removeprefix("/")))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 1), (404, 1), (503, 1)])
def test_a_service_is_healthy_where_it_answers_with_success(address: str, status: int, code: int) -> None:
    assert health(f"{address}/{status}") == code


def test_a_service_that_does_not_answer_is_not_healthy() -> None:
    assert health("http://127.0.0.1:9/") == 1
