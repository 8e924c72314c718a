"""The same on Postgres: Debian's own binaries, a database of the test's."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
OWNER = "postgres"
STAGES = 1


def _account() -> bool:
    return any(entry.pw_name == OWNER for entry in pwd.getpwall())


pytestmark = [
    pytest.mark.skipif(BINARIES is None, reason="no Postgres in /usr/lib/postgresql: apt-get install postgresql"),
    pytest.mark.skipif(os.getuid() == 0 and not _account(), reason="Postgres does not run as root, and there is no account postgres"),
]


@pytest.fixture(scope="module")
def database_url(tmp_path_factory: pytest.TempPathFactory, port: Callable[[], int]) -> Iterator[str]:
    assert BINARIES is not None
    folder = Path("/tmp") / f"trlm-postgres-{os.getpid()}"  # short: a socket's path has a limit; readable for its owner
    folder.mkdir()
    if os.getuid() == 0:
        shutil.chown(folder, OWNER)
    number = port()
    _run("initdb", "--pgdata", folder / "data", "--username", "trlm", "--auth", "trust")
    options = f"-c listen_addresses=127.0.0.1 -c port={number} -c unix_socket_directories={folder} -c fsync=off"
    _run("pg_ctl", "--pgdata", folder / "data", "--wait", "--log", folder / "log", "--options", options, "start")
    yield f"postgresql+asyncpg://trlm@127.0.0.1:{number}/postgres"
    _run("pg_ctl", "--pgdata", folder / "data", "--mode", "immediate", "stop")
    shutil.rmtree(folder)


def _run(program: str, *arguments: Any) -> None:
    assert BINARIES is not None
    owner = OWNER if os.getuid() == 0 else None
    subprocess.run([BINARIES / program, *map(str, arguments)], check=True, user=owner, cwd="/", stdout=subprocess.DEVNULL)


def test_a_pipeline_runs_through_a_server_on_postgres(
    start_site: Callable[..., Any], database_url: str, recipe_of: Callable[[int], dict[str, Any]]
) -> None:
    site = start_site("--database-url", database_url)
    pipeline = site.finished("trlm/full-pipeline", recipe=recipe_of(STAGES))
    assert [run["state"]["type"] for run in site.children(pipeline, "train")] == ["COMPLETED"] * STAGES
    assert {run.info.status for run in site.mlflow_runs()} == {"FINISHED"}
    assert not list(site.home.glob("prefect.db*")), "nothing of Prefect's is kept in SQLite"
