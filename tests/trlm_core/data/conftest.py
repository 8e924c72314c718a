"""The report's second stage on a loopback Hub, for the tests of a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loopback_hub.report_blend import ReportBlend, Undisturbed, blended_undisturbed, served_report_blend


@pytest.fixture(scope="module")
def report_blend(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReportBlend]:
    with served_report_blend(tiny_base, tmp_path_factory.mktemp("report-blend")) as blend:
        yield blend


@pytest.fixture(scope="module")
def undisturbed(report_blend: ReportBlend) -> Undisturbed:
    return blended_undisturbed(report_blend)
