"""The machine's readings travel with the training's metrics, and a resumed training counts on."""

import json
import time
from pathlib import Path

import pytest

from trlm_core.metric_spool import MetricSpool
from trlm_core.system_metrics import CLOCK, system_metrics

SECONDS = 0.05


def test_a_training_s_machine_is_read_until_it_ends_and_a_resumed_one_counts_on(tmp_path: Path):
    for _ in range(2):
        spool = MetricSpool(tmp_path / "metrics.jsonl", None)
        with system_metrics(spool, SECONDS):
            time.sleep(10 * SECONDS)
        spool.close(0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) > 4
    assert [line["step"] for line in lines if CLOCK in line["metrics"]] == list(range(len(lines)))


def test_even_a_training_of_a_moment_is_read_once(tmp_path: Path):
    spool = MetricSpool(tmp_path / "metrics.jsonl", None)
    with system_metrics(spool):
        pass
    spool.close(0)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["metrics"]["system/system_memory_usage_percentage"] > 0


def test_a_training_that_fails_fails_as_itself(tmp_path: Path):
    spool = MetricSpool(tmp_path / "metrics.jsonl", None)
    with pytest.raises(ZeroDivisionError), system_metrics(spool):
        _ = 1 / 0
    spool.close(0)
