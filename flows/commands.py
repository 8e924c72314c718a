"""What the commands of `trlm` share: their options, the environment before anything heavy is imported, and errors in one line."""

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from trlm_core.artifacts.errors import StoreConnectionError
from trlm_core.artifacts.full_disk import is_full_disk, told
from trlm_core.data.errors import PublishConnectionError, SourceConnectionError
from trlm_core.training.hardware import HUGE_PAGES

Name = Annotated[str, typer.Argument(help="A recipe's name, or the path of its YAML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="End with one line of JSON.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key; may be repeated.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda (NVIDIA, ROCm) or mps.")]
TrackingAddress = Annotated[
    str | None, typer.Option("--tracking-uri", help="MLflow's address; a database in the store by default.", envvar="MLFLOW_TRACKING_URI")
]
StoreAddress = Annotated[str, typer.Option(help="The store: a folder, a file: or an s3://bucket/prefix address.", envvar="TRLM_STORE")]


def set_up_environment() -> None:
    """Before torch and Prefect are imported. What the user has set himself stays."""
    for variable, value in HUGE_PAGES.items():
        os.environ.setdefault(variable, value)
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # The core logs what it reuses, what it builds and why: to the terminal, and with Prefect's logs to the UI.
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "trlm_core")
    logging.getLogger("trlm_core").setLevel(logging.INFO)


class clear_errors:  # noqa: N801
    """A user's mistake or a full disk is one line on standard error and exit code 2, not a traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError | StoreConnectionError | SourceConnectionError | PublishConnectionError):
            fail(str(error))
        if error is not None and is_full_disk(error):
            fail(told(error))


def fail(what: str) -> NoReturn:
    typer.echo(f"trlm: {what}", err=True)
    sys.exit(2)
