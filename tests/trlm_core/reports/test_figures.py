"""Figures: numbers, units, bytes that repeat, ids that do not collide."""

import re
from xml.etree import ElementTree

from trlm_core.reports.figures import curve, curves, moving_mean
from trlm_core.reports.results import RunResults

HISTORY = [
    {"step": 1, "loss": 2.0, "mean_token_accuracy": 0.4, "entropy": 1.5},
    {"step": 2, "loss": 1.0, "mean_token_accuracy": 0.6, "entropy": 1.0},
]
POINTS = [(1, 2.0), (2, 1.5), (3, 1.0)]


def ids(svg: str) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', svg))


def test_stage_2_has_figures_5_to_7(results: RunResults) -> None:
    assert [each.title for each in curves(results.stages[1].stage, HISTORY)] == [
        "Figure 5: stage 2 training loss",
        "Figure 6: stage 2 mean token accuracy",
        "Figure 7: stage 2 entropy",
    ]


def test_same_points_same_bytes() -> None:
    assert curve(2, "loss", "nats", POINTS) == curve(2, "loss", "nats", POINTS)


def test_two_figures_of_a_page_share_no_id() -> None:
    first, second = (curve(number, "loss", "nats", POINTS).svg for number in (2, 3))
    assert ids(first)
    assert not ids(first) & ids(second)


def test_every_reference_inside_a_figure_has_its_target() -> None:
    svg = curve(2, "loss", "nats", POINTS).svg
    references = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    assert references
    assert references <= ids(svg)


def test_a_figure_is_well_formed_and_leaves_the_rest_of_the_page_alone() -> None:
    svg = curve(2, "loss", "nats", POINTS).svg
    assert ElementTree.fromstring(svg).get("aria-label") == "Figure 2: loss"
    assert "<style" not in svg
    assert "#000000" not in svg  # black text would vanish on a dark page


def test_a_metric_that_was_not_logged_has_no_figure(results: RunResults) -> None:
    assert [each.number for each in curves(results.stages[0].stage, [{"step": 1, "loss": 2.0}])] == [2]


def test_moving_mean_takes_fewer_neighbours_at_the_ends() -> None:
    assert moving_mean([1.0, 2.0, 6.0, 4.0], 1) == [1.5, 3.0, 4.0, 5.0]
