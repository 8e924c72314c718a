"""Suspects: the rows that a loss or a gradient which is not finite came with: single rows, a micro-batch's, or the whole step's.

Suspects("row", [17]): row 17 by itself gives such a loss or gradient. Nothing is computed for it in a step that is good.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from trlm_core.training.batching import MicroBatch, StepBatch


@dataclass(frozen=True)
class Suspects:
    scope: Literal["row", "micro-batch", "step"]
    rows: list[int]


def whole_step(step: StepBatch) -> Suspects:
    return Suspects("step", step.rows)


def suspects_in(
    step: StepBatch,
    losses: Sequence[float],
    is_finite: Callable[[MicroBatch], bool],
    singly: Callable[[MicroBatch], Sequence[MicroBatch]],
) -> Suspects:
    """Those of this process's micro-batches, whose losses were these; no rows where none of them is at fault by itself.

    `is_finite` computes a micro-batch by itself again, `singly` gives each of its rows as one.
    """
    micros = step.micro_batches
    bad = [micro for micro, loss in zip(micros, losses, strict=True) if not math.isfinite(loss)]
    bad = bad or [micro for micro in micros if not is_finite(micro)]
    narrowed = [[row for single in singly(micro) if not is_finite(single) for row in single.rows] for micro in bad]
    rows = [row for micro, singles in zip(bad, narrowed, strict=True) for row in singles or micro.rows]
    return Suspects("row" if all(narrowed) else "micro-batch", rows)


def joined(step: StepBatch, found: Sequence[Suspects]) -> Suspects:
    """What the processes of a group found. Where it is every row of the step, or none, no row can be told from the others."""
    rows = sorted(row for each in found for row in each.rows)
    if len(rows) in {0, len(step.rows)}:
        return whole_step(step)
    return Suspects("row" if all(each.scope == "row" for each in found if each.rows) else "micro-batch", rows)
