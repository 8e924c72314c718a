"""A table of the report: a caption, a head, rows of cells; Cell("71.2", spread="± 5.3", kind="number")."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trlm_core.evals.reasoning import Estimate

ABSENT = "–"


@dataclass(frozen=True)
class Cell:
    text: str
    spread: str = ""  # standard error and n, set fainter
    kind: Literal["text", "number", "code", "good", "bad"] = "text"
    whole: str = ""  # what the text is short for


@dataclass(frozen=True)
class Table:
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]  # the first cell of a row is its heading
    folded: str = ""  # the words to open it by; shown at once where empty

    def is_number(self, column: int) -> bool:
        return any(row[column].kind == "number" for row in self.rows)


def share(value: Estimate) -> Cell:
    """A mean in percent."""
    return _estimate_cell(value, f"{100 * value.mean:.1f}", f"{100 * value.standard_error:.1f}")


def mean(value: Estimate, digits: int) -> Cell:
    return _estimate_cell(value, f"{value.mean:.{digits}f}", f"{value.standard_error:.{digits}f}")


def number(text: str) -> Cell:
    return Cell(text, kind="number")


def code(text: str) -> Cell:
    return Cell(text, kind="code")


def verdict(reached: bool, good: str, bad: str) -> Cell:
    return Cell(good, kind="good") if reached else Cell(bad, kind="bad")


def markdown(table: Table) -> str:
    """The table for GitHub, its caption below it; a cell's spread stands behind its text."""
    rule = ["---:" if table.is_number(column) else "---" for column in range(len(table.head))]
    rows = [[" ".join(part for part in (cell.text, cell.spread) if part) for cell in row] for row in table.rows]
    return "\n".join(_markdown_line(line) for line in (table.head, rule, *rows)) + f"\n\n{table.caption}\n"


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _estimate_cell(value: Estimate, text: str, error: str) -> Cell:
    return Cell(text, f"± {error} ({value.n:,})", "number") if value.n else number(ABSENT)
