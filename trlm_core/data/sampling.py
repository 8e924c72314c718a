"""Which rows of a split are taken, and in which order: its first ones, whole row groups drawn, or single rows drawn.

A reservoir of known length is a permutation: its first N rows are a uniform sample, and the next ones replace those that a filter drops.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trlm_core.data.split_files import Part

Missing = Callable[[], int]  # how many rows are still wanted


@dataclass(frozen=True)
class Pick:
    """Rows of one part: all of them, or those named (ascending, counted within the part)."""

    part: Part
    rows: np.ndarray | None


def head(parts: Iterator[Part], missing: Missing) -> Iterator[list[Pick]]:
    """Passes: each has as many of the next parts as hold the rows that are missing by then."""
    while count := missing():
        chosen: list[Pick] = []
        while count > 0 and (part := next(parts, None)) is not None:
            chosen.append(Pick(part, None))
            count -= part.rows
        if not chosen:
            return
        yield chosen


def row_groups(parts: Iterator[Part], missing: Missing, seed: int) -> Iterator[list[Pick]]:
    """Passes over whole parts in a drawn order: neighbours in the split stay neighbours."""
    known = list(parts)
    order = np.random.default_rng(seed).permutation(len(known))
    return head((known[number] for number in order), missing)


def reservoir(parts: Iterator[Part], missing: Missing, seed: int) -> Iterator[list[Pick]]:
    """Passes over single rows, drawn; each has as many as are missing by then."""
    known = list(parts)
    order = np.random.default_rng(seed).permutation(sum(part.rows for part in known))
    taken = 0
    while (count := missing()) and taken < len(order):
        yield _picked(known, np.sort(order[taken : taken + count]))
        taken += count


def _picked(parts: Sequence[Part], rows: np.ndarray) -> list[Pick]:
    edges = np.searchsorted(rows, [part.first_row for part in parts] + [parts[-1].first_row + parts[-1].rows])
    mine = [rows[first:last] - part.first_row for part, first, last in zip(parts, edges[:-1], edges[1:], strict=True)]
    return [Pick(part, each) for part, each in zip(parts, mine, strict=True) if each.size]
