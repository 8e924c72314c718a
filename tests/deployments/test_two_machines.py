"""Two workers as if on two machines: folders and caches of their own, a bucket between them, started as the guide says."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from trlm_core.artifacts.store import Store

BUCKET = "trlm"
STAGES = 2  # the second reads what the first has left in the bucket


@pytest.fixture(scope="module")
def bucket(port: Callable[[], int], until: Callable[..., Any]) -> Iterator[dict[str, str]]:
    """The environment that reaches an S3 on loopback, with one bucket."""
    number = port()
    address = f"http://127.0.0.1:{number}"
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(number)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            return httpx.get(f"{address}/moto-api/", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    until(answers, 60, "moto answers")
    keys = {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback", "AWS_DEFAULT_REGION": "us-east-1"}
    boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="loopback", aws_secret_access_key="loopback", region_name="us-east-1"
    ).create_bucket(Bucket=BUCKET)
    yield {"AWS_ENDPOINT_URL": address, **keys}
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def two_machines(start_site: Callable[..., Any], bucket: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    site = start_site("--pool", "cpu", store=f"s3://{BUCKET}/runs", **bucket, TRLM_CACHE=str(first))
    worker = subprocess.Popen(
        [str(site.bin / "prefect"), "worker", "start", "--pool", "mi300x", "--type", "process"],
        cwd=second,
        env={**site.environment, "TRLM_CACHE": str(second)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield site, second
    worker.kill()
    worker.wait()


def test_a_pipeline_across_two_machines_meets_in_the_bucket(
    two_machines: Any, bucket: dict[str, str], recipe_of: Callable[[int], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site, second = two_machines
    pipeline = site.finished("trlm/full-pipeline", recipe=recipe_of(STAGES))
    assert len(site.children(pipeline, "train")) == STAGES
    assert list(second.rglob("history.jsonl")), "the second machine trained"
    assert not list(second.rglob("report.html")), "and did nothing else"
    assert {run.info.status for run in site.mlflow_runs()} == {"FINISHED"}

    for name, value in {**bucket, "TRLM_CACHE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    kinds = {manifest.kind for manifest in Store.open(site.environment["TRLM_STORE"]).manifests()}
    assert kinds == {"datasets", "checkpoints", "evals", "reports"}
    done = subprocess.run(
        [str(site.bin / "trlm"), "verify", "--store", site.environment["TRLM_STORE"]],
        capture_output=True, text=True, env={**os.environ, **bucket}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "artifacts are whole" in done.stdout
