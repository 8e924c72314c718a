"""Figures of a TRM run: accuracy against supervision steps, the halting curve, and each training's curves."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trlm_core.reports.figures import CURVE, FAINT, INK, SETTINGS, Curve, curve, inline_svg, label_axes
from trlm_core.reports.trm_tables import row_label
from trlm_core.trm.evaluate import Evaluation, steps_of
from trlm_core.trm.results import HaltingPoint

ROOM_FOR_A_NAME = 18  # names fit above one another into the height of the accuracy figure
MOST_POINTS = 1_000  # of a curve: a long training's would be megabytes
REFERENCES = ("direct", "nonrecursive", "pause", "oracle_latents", "direct_tuned")  # levels that the TRM's curve is read against
LOSS = ("loss", "training loss", "weighted sum of its losses")
RIGHT = ("right", "examples that are right", "share")
CURVES = {  # role -> metric in history.jsonl, caption, unit
    "base": (("loss", "training loss", "nats a label token"),),
    "phase1": (
        LOSS,
        ("loss_identity_post", "error of the thought's states", "over their variance"),
        ("loss_answer", "answer loss", "nats a token"),
    ),
    "nonrecursive": (LOSS, RIGHT),
    "pause": (LOSS, RIGHT),
    "direct_tuned": (("loss", "training loss", "nats a label token"),),
    "phase2": (
        LOSS,
        RIGHT,
        ("r2", "R² of the latents about their mean", "share of variance"),
        ("halt_accuracy", "halting head", "share right"),
        ("mean_steps", "supervision steps of an example", "supervision steps"),
    ),
    "phase2b": (LOSS, RIGHT),
    "phase3": (
        ("reward_mean", "mean reward", "reward"),
        ("exact", "sampled answers that are right", "share"),
        ("kl", "KL from phase 2", "nats a token"),
        ("zero_variance_share", "groups of one mind", "share"),
    ),
}


def accuracy_figure(number: int, evaluation: Evaluation) -> Curve:
    """Exact answers after so many supervision steps, with standard errors; the levels of what does not think in steps beside it."""
    rows = steps_of(evaluation)
    steps = [step for step, _ in rows]
    values, errors = [100 * row.exact for _, row in rows], [100 * row.standard_error for _, row in rows]
    title = f"Figure {number}: accuracy against supervision steps"
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.errorbar(steps, values, yerr=errors, color=CURVE, linewidth=1.8, marker="o", markersize=4, capsize=2)
        _draw_levels(axes, {row_label(row.name): 100 * row.exact for row in evaluation.rows if row.name in REFERENCES})
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
        label_axes(axes, "supervision steps", "exact answers, %")
        svg = inline_svg(figure, title, f"figure-{number}-")
    return Curve(number, title, svg, values[0], values[-1], max(steps), "supervision steps")


def _draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    """Dashed lines, named at their right, where no name lies on another."""
    for level in levels.values():
        axes.axhline(level, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    bottom, top = axes.get_ylim()
    for words, place in spread_out(levels, (top - bottom) / ROOM_FOR_A_NAME).items():
        axes.annotate(words, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=7.5)


def spread_out(levels: Mapping[str, float], gap: float) -> dict[str, float]:
    """From the lowest up, each at its level or as far above it as the one below needs."""
    places: dict[str, float] = {}
    lowest = float("-inf")
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        places[name] = lowest = max(level, lowest + gap)
    return places


def halting_figure(number: int, points: Sequence[HaltingPoint]) -> Curve:
    """What share of the examples the halting head would have stopped by a step, and how sure it is at it."""
    title = f"Figure {number}: halting"
    steps, halted = [point.step for point in points], [100 * point.halted for point in points]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.plot(steps, halted, color=CURVE, linewidth=1.8, label="halted by this step")
        axes.plot(
            steps, [100 * point.p_halt for point in points], color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="mean probability"
        )
        axes.legend(frameon=False, fontsize=7.5, edgecolor=FAINT)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
        label_axes(axes, "supervision steps", "examples, %")
        svg = inline_svg(figure, title, f"figure-{number}-")
    return Curve(number, title, svg, halted[0], halted[-1], len(points), "supervision steps")


def training_curves(first_number: int, histories: Mapping[str, Sequence[dict[str, Any]]]) -> list[Curve]:
    """Of every training by its role; a metric that no line has gives none."""
    made: list[Curve] = []
    for role, history in histories.items():
        for metric, caption, unit in CURVES[role]:
            points = [(int(line["step"]), float(line[metric])) for line in history if metric in line]
            if points:
                made.append(curve(first_number + len(made), f"{role_label(role)} {caption}", unit, thinned(points)))
    return made


def role_label(role: str) -> str:
    """`phase2b` -> `phase 2b`."""
    return role.replace("phase", "phase ").replace("_", " ")


def thinned(points: Sequence[tuple[int, float]], most: int = MOST_POINTS) -> list[tuple[int, float]]:
    """At most so many: each the mean of its stretch, at the stretch's last step."""
    parts = min(most, len(points))
    bounds = [round(part * len(points) / parts) for part in range(parts + 1)]
    stretches = [points[begin:end] for begin, end in itertools.pairwise(bounds)]
    return [(stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) for stretch in stretches]
