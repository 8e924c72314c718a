"""Bad steps: a loss or a gradient that is not finite, not one label, or a gradient far over its running range.

transformers masks such a loss in its logs and steps all the same; here it is told before the optimizer moves, with the provenance of the
rows that it comes of: a single one where it can be told (suspects.py), else its micro-batch's, else the step's.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from trlm_core.training.batching import Rows, StepBatch
from trlm_core.training.errors import BadStepError
from trlm_core.training.group import told_by_first
from trlm_core.training.suspects import Suspects, whole_step

logger = logging.getLogger(__name__)

WINDOW = 64  # good steps whose median gradient norm is the running one
FEWEST = 16  # of them that there must be before a step is measured by it
MOST_IN_A_ROW = 16  # that are skipped
NAMED = 8  # rows that a message names; the file has all
# {"step": 12, "why": "wanted a finite loss, got nan", "scope": "row", "rows": ["HuggingFaceTB/smoltalk2 SFT s1k_1.1_think row 17"]}
SKIPPED = "skipped_steps.jsonl"
FOUND = {"row": "found in", "micro-batch": "the rows of its micro-batch", "step": "its rows"}


class BadSteps:
    """Judges a step when its gradient is there."""

    def __init__(
        self,
        action: Literal["stop", "skip"],
        max_ratio: float | None,
        origin: Callable[[int], str],
        on_skip: Callable[[dict[str, Any]], None],
    ) -> None:
        self._action, self._max_ratio, self._origin, self._on_skip = action, max_ratio, origin, on_skip
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._in_a_row = 0

    def remember(self, norms: Iterable[float]) -> None:
        """The gradient norms of the good steps that a resumed training has behind it."""
        self._norms.extend(norms)

    def is_bad(self, step: StepBatch, loss: float, norm: float, suspects: Callable[[], Suspects]) -> bool:
        """Whether the step has to be skipped; for every process at once. `suspects` is asked where something is not finite.

        Raises BadStepError where the recipe says stop, or where every step would be.
        """
        # One decision for the group: a norm's last bits, and so a step at the limit, can differ from process to process.
        why, loss, norm = told_by_first((self._why(step, loss, norm), loss, norm))
        if why is None:
            self._norms.append(norm)
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        if self._in_a_row > MOST_IN_A_ROW:
            raise BadStepError(f"step {step.index + 1}: {why}; so were the {MOST_IN_A_ROW} before: it is the training, and not its rows")
        not_finite = step.loss_units and not (math.isfinite(loss) and math.isfinite(norm))
        found = suspects() if not_finite else whole_step(step)
        origins = [self._origin(row) for row in found.rows]
        named = f"{FOUND[found.scope]}: {_first(origins)}"
        if self._action == "stop":
            raise BadStepError(f"step {step.index + 1}: {why}; {named}; mend these rows, or set training.bad_steps: skip")
        logger.warning("step %d is skipped: %s; %s", step.index + 1, why, named)
        self._on_skip({"step": step.index + 1, "why": why, "scope": found.scope, "rows": origins})
        return True

    def _why(self, step: StepBatch, loss: float, norm: float) -> str | None:
        if not step.loss_units:
            return "wanted labels, got not a single one"
        if not math.isfinite(loss):
            return f"wanted a finite loss, got {loss}"
        if not math.isfinite(norm):
            return f"wanted a finite gradient, got a norm of {norm}"
        if self._max_ratio is None or len(self._norms) < FEWEST:
            return None
        usual = statistics.median(self._norms)
        if norm <= self._max_ratio * usual:
            return None
        return f"wanted a gradient norm of at most {self._max_ratio:g} times the usual {usual:.3g}, got {norm:.3g}"


def origin_in(rows: Rows) -> Callable[[int], str]:
    """The provenance of a row of the stage dataset, in words."""
    return lambda row: str(rows[row]["origin"])


def _first(origins: Sequence[str]) -> str:
    more = f" and {len(origins) - NAMED:,} more" if len(origins) > NAMED else ""
    return f"{', '.join(origins[:NAMED])}{more}"
