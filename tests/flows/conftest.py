"""The command as a user runs it: a process of its own, with its own Prefect home and a store in a temporary folder."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., "Finished"]


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def last_line(self) -> dict[str, Any]:
        return json.loads(self.out.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="session")
def environment(prefect_home: Path) -> dict[str, str]:
    return {**os.environ, "PREFECT_HOME": str(prefect_home), "OMP_NUM_THREADS": "2", "COLUMNS": "200"}


@pytest.fixture(scope="session")
def trlm(environment: dict[str, str]) -> Command:
    """`trlm("run", "x.yaml")` gives its exit code and what it printed."""

    def command(*arguments: str, timeout: float = 600, **changed: str) -> Finished:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "trlm"), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**environment, **changed},
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return command
