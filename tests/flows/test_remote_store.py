"""The command on a store in a bucket: what it lists, and what it finds damaged, with exit codes."""

import os
from pathlib import Path
from typing import Any

from trlm_core.artifacts.store import Spec, Store

SPEC = Spec("checkpoints", "trlm-tiny", "stage1_sft", {"learning_rate": 0.001}, {})


def build(folder: Path) -> dict[str, Any]:
    (folder / "model.safetensors").write_bytes(b"weights")
    return {"steps": 12}


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "TRLM_"))}


def test_a_bucket_is_listed_and_verified_to_the_last_remote_byte(trlm: Any, s3_store: Store) -> None:
    assert s3_store.remote is not None
    made = s3_store.make(SPEC, build)
    listed = trlm("store", "ls", "--store", s3_store.address, **environment())
    assert (listed.code, listed.out.split()[0]) == (0, made.address)
    whole = trlm("verify", "checkpoints", "--store", s3_store.address, **environment())
    assert (whole.code, whole.out) == (0, f"whole    {made.address}\n1 of 1 artifacts are whole\n")
    s3_store.remote.write(f"{made.address}/model.safetensors", b"weightS")
    damaged = trlm("verify", made.address, "--store", s3_store.address, **environment())
    assert damaged.code == 1
    assert f"damaged  {made.address}\n         {s3_store.location(made)}/model.safetensors: wanted sha256" in damaged.out


def test_a_bucket_with_nothing_below_the_prefix_is_no_store(trlm: Any, s3_address: str) -> None:
    done = trlm("store", "ls", "--store", s3_address, **environment())
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.strip().splitlines()
    assert line.startswith(f"trlm: store {s3_address}: wanted a store, got nothing there")


def test_a_server_that_does_not_answer_is_one_clear_line(trlm: Any, s3_address: str) -> None:
    done = trlm("verify", "--store", s3_address, **{**environment(), "AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert line.startswith(f"trlm: store {s3_address}: wanted an answer from http://127.0.0.1:9")
