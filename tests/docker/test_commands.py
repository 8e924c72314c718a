"""Every command that an image, a service or a health check starts: the installed program's own parser takes it."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OTHERS = {"pg_isready", "redis-cli", "redis-server"}  # of Postgres' and Redis' own images


def commands() -> Iterator[tuple[str, list[str]]]:
    for path in sorted(ROOT.glob("docker/Dockerfile.*")):
        for kind, command in re.findall(r"^(CMD|ENTRYPOINT) (.+)$", path.read_text(), flags=re.M):
            yield f"{path.name} {kind}", json.loads(command)
    for name, service in yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"].items():
        if "command" in service:
            yield name, service["command"]
        if "entrypoint" in service:
            yield f"{name} entrypoint", [*service["entrypoint"], *service["command"]]
        if "healthcheck" in service:
            kind, *command = service["healthcheck"]["test"]
            assert kind == "CMD"
            yield f"{name} health", command


COMMANDS = dict(commands())


def parse(command: list[str]) -> None:
    """Raises where the program would refuse the command. Nothing is run."""
    program, *arguments = command
    if program == "prefect":
        from prefect.cli._app import _app

        _app.parse_args(arguments, exit_on_error=False, print_error=False)
    elif program == "mlflow":
        from mlflow.cli import cli

        _parse_click(cli, arguments)
    elif program == "trlm":
        from typer.main import get_command

        from flows.cli import app

        _parse_click(get_command(app), arguments)
    elif program in ("python", "python3"):
        script, *rest = arguments
        if script == "-m":
            assert importlib.util.find_spec(rest[0]) is not None, rest[0]
            return
        assert (ROOT / script).is_file(), script
        if script == "docker/with_gpu.py":
            parse(rest)
    else:
        assert program in OTHERS, program


def _parse_click(command: Any, arguments: list[str]) -> None:
    """`command` is click's or typer's, which has a click of its own."""
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(command.name, list(arguments))


@pytest.mark.parametrize("where", COMMANDS)
def test_its_program_takes_it(where: str) -> None:
    parse(COMMANDS[where])


def test_the_servers_and_both_workers_are_among_them() -> None:
    starts = {" ".join(command[:3]) for command in COMMANDS.values()}
    assert {
        "prefect server start",
        "prefect server services",
        "prefect worker start",
        "trlm deploy",
        "mlflow server --host=0.0.0.0",
    } <= starts
    pools = {command[4] for command in COMMANDS.values() if command[:4] == ["prefect", "worker", "start", "--pool"]}
    assert pools == {"cpu", "mi300x"}


@pytest.mark.parametrize(
    "command",
    [
        ["prefect", "server", "start", "--no-service"],
        ["prefect", "server", "service", "start"],
        ["prefect", "worker", "start", "--pool", "mi300x", "--limit", "one"],
        ["mlflow", "server", "--host=0.0.0.0", "--allow-hosts=mlflow:5000"],
        ["trlm", "deployed"],
        ["python", "docker/answer.py", "http://127.0.0.1:4200/api/health"],
        ["python3", "docker/with_gpu.py", "prefect", "worker", "begin"],
        ["curl", "http://127.0.0.1:4200/api/health"],
    ],
)
def test_a_wrong_one_is_refused(command: list[str]) -> None:
    with pytest.raises((Exception, SystemExit)):
        parse(command)
