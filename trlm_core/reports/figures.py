"""The report's Figures 2 to 10: training curves as SVG for a page that sets them inline; the same history gives the same bytes.

Colours are the page's: text is `currentColor`, the curve is `var(--curve)`.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trlm_core.recipes.schema import Stage
from trlm_core.reports.compare import STAGE_LABELS

SFT_CURVES = (("loss", "training loss"), ("mean_token_accuracy", "mean token accuracy"), ("entropy", "entropy"))
DPO_CURVES = (("loss", "training loss"), ("rewards/accuracies", "reward accuracy"), ("rewards/margins", "reward margin"))
FIGURES = {  # stage -> number, metric in history.jsonl, caption
    "stage1_sft": tuple((number, *curve) for number, curve in enumerate(SFT_CURVES, start=2)),
    "stage2_sft_think": tuple((number, *curve) for number, curve in enumerate(SFT_CURVES, start=5)),
    "stage3_dpo": tuple((number, *curve) for number, curve in enumerate(DPO_CURVES, start=8)),
}
UNITS = {
    "mean_token_accuracy": "share of label tokens",
    "entropy": "nats a token",
    "rewards/accuracies": "share of pairs",
    "rewards/margins": "β × nats",
}
LOSS_UNITS = {
    "nll": "nats a label token",
    "dft": "p × nats a label token",
    "apo_zero": "apo_zero, no unit",
    "sigmoid": "nats a pair",
}
# Stand-ins that no other part of a drawing uses; replaced by the page's own colours in the finished SVG.
INK, FAINT, CURVE = "#010203", "#040506", "#070809"
PAGE_COLOURS = {INK: "currentColor", FAINT: "var(--rule, #ccc)", CURVE: "var(--curve, #1f6feb)"}
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trlm",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Curve:
    number: int
    title: str
    svg: str
    first: float  # of the moving mean
    last: float
    steps: int
    counted: str = "steps"  # what was counted, where it is no optimizer step


def curves(stage: Stage, history: Sequence[dict[str, Any]]) -> list[Curve]:
    """The stage's figures from the lines of its history.jsonl; a metric that no line has gives none."""
    return [
        curve(number, f"{STAGE_LABELS[stage.name]} {caption}", _unit(stage, metric), points)
        for number, metric, caption in FIGURES[stage.name]
        if (points := [(int(line["step"]), float(line[metric])) for line in history if metric in line])
    ]


def curve(number: int, title: str, unit: str, points: Sequence[tuple[int, float]]) -> Curve:
    """One figure of (step, value): a thin raw line under its moving mean."""
    steps, values = zip(*points, strict=True)
    smooth = moving_mean(values, max(1, len(values) // 20))
    title = f"Figure {number}: {title}"
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(3.9, 2.5), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.plot(steps, values, color=CURVE, linewidth=0.7, alpha=0.4)
        axes.plot(steps, smooth, color=CURVE, linewidth=1.8)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
        label_axes(axes, "optimizer step", unit)
        svg = inline_svg(figure, title, f"figure-{number}-")
    return Curve(number, title, svg, smooth[0], smooth[-1], len(steps))


def moving_mean(values: Sequence[float], half: int) -> list[float]:
    """Mean of each value with up to `half` neighbours on either side; at the ends there are fewer."""
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _unit(stage: Stage, metric: str) -> str:
    return LOSS_UNITS[stage.training.loss_type] if metric == "loss" else UNITS[metric]


def label_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_facecolor("none")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(True, color=FAINT, linewidth=0.6)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def inline_svg(figure: Figure, title: str, prefix: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    text = buffer.getvalue()
    return _inlined(text[text.index("<svg") :], title, prefix)


def _inlined(svg: str, title: str, prefix: str) -> str:
    """The drawing as part of a page: ids of its own, no style for the page's other elements, the page's colours and font."""
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg)
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{title}">', svg, count=1)
    svg = re.sub(r"\bid=\"", f'id="{prefix}', svg)
    svg = re.sub(r"xlink:href=\"#", f'href="#{prefix}', svg).replace("url(#", f"url(#{prefix}")
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for stand_in, colour in PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg
