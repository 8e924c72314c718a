"""The loopback Hub: a real HTTP server that speaks the Hub's protocol to the real `huggingface_hub` and `datasets` clients.

They take it for the Hub with HF_ENDPOINT set to its endpoint and HF_HUB_DISABLE_XET=1, before they are imported.
Serve a folder of datasets, one commit each: `python -m tests.loopback_hub.server --root DIR --latency-ms 40 --mb-per-s 20`.
"""

import argparse
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.loopback_hub.connection import Connection
from tests.loopback_hub.faults import Fault, Request
from tests.loopback_hub.repositories import Repositories
from tests.loopback_hub.uploads import LargeFiles


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with the five of the default, the sixth connection at once waits a second for its retry


@dataclass
class Answer:
    request: Request
    status: int
    at: float = field(default_factory=time.monotonic)  # when it began
    sent: int = 0  # bytes of the body


@dataclass
class LoopbackHub:
    """`with LoopbackHub() as hub`: hub.repositories, hub.endpoint, hub.requests, hub.answers, hub.faults."""

    latency_seconds: float = 0.0  # until an answer begins
    bytes_per_second: float | None = None  # of a connection
    page_size: int = 1000  # entries of a tree
    port: int = 0  # any that is free
    repositories: Repositories = field(default_factory=Repositories)
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)  # in the order they came
    answers: list[Answer] = field(default_factory=list)  # in the order they began
    sent: Counter[str] = field(default_factory=Counter)  # bytes of files, by repository
    large_files: LargeFiles = field(default_factory=LargeFiles)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "LoopbackHub":
        self._server = _Server(("127.0.0.1", self.port), type("OfThisHub", (Connection,), {"hub": self}))
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def asked(self, request: Request) -> Fault | None:
        """The fault that hits the request, if one does."""
        with self.guard:
            self.requests.append(request)
            return next((fault for fault in self.faults if fault.applies(request)), None)

    def answered(self, request: Request, status: int) -> Answer:
        answer = Answer(request, status)
        with self.guard:
            self.answers.append(answer)
        return answer

    def count(self, answer: Answer, sent: int, repository: str | None) -> None:
        answer.sent += sent
        with self.guard:
            self.sent.update({repository: sent} if repository is not None else {})

    def counters(self) -> dict[str, Any]:
        with self.guard:
            return {"requests": len(self.requests), "bytes": self.sent.total(), "bytes_by_repo": dict(self.sent)}

    def data_requests(self) -> list[Request]:
        return [request for request in self.requests if request.is_data]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with <owner>/<name>/ below, a dataset each")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="until an answer begins")
    parser.add_argument("--mb-per-s", type=float, default=None, help="of a connection")
    asked = parser.parse_args()
    hub = LoopbackHub(asked.latency_ms / 1000, asked.mb_per_s and asked.mb_per_s * 1e6, port=asked.port)
    for folder in sorted(path for path in asked.root.glob("*/*") if path.is_dir()):
        hub.repositories.add_folder(folder.relative_to(asked.root).as_posix(), folder)
    with hub:
        print(json.dumps({"endpoint": hub.endpoint}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
