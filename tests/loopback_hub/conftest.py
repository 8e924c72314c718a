"""A loopback Hub for each test, with a repository of letters, and the real clients to read it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback_hub.clients import Client, told_by_client
from tests.loopback_hub.letters import FILES, NAME
from tests.loopback_hub.repositories import Repository
from tests.loopback_hub.server import LoopbackHub


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        yield server


@pytest.fixture
def letters(hub: LoopbackHub) -> Repository:
    repository = hub.repositories.made(NAME)
    repository.commit(FILES)
    return repository


@pytest.fixture
def client(hub: LoopbackHub, tmp_path: Path) -> Client:
    def run(code: str, **environment: str) -> Any:
        return told_by_client(hub, tmp_path / "hf", code, environment)

    return run
