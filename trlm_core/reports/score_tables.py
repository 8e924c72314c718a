"""Tables of what was measured: goals, results, comparisons, families, held-out losses, preferences. Each says which base it is of."""

from collections.abc import Sequence

from trlm_core.reports.compare import Comparison, Goal, Numbers, PreferenceRow, ResultRow, StageLoss
from trlm_core.reports.results import BASE, FEW_SHOT
from trlm_core.reports.table import ABSENT, Cell, Table, mean, number, share, verdict

ESTIMATES = "Mean ± standard error (n)."


def goal_table(each: Numbers) -> Table:
    caption = f"{reached(each.goals)} of {len(each.goals)} goals reached. {_of_base(each)}"
    rows = tuple(
        (Cell(goal.name), verdict(goal.reached, "reached", "not reached"), Cell(goal.wanted), Cell(goal.got)) for goal in each.goals
    )
    return Table(caption, ("goal", "", "wanted", "got"), rows)


def reached(goals: Sequence[Goal]) -> int:
    return sum(goal.reached for goal in goals)


def result_table(each: Numbers) -> Table:
    caption = f"{ESTIMATES} n counts questions; for the thought, replies that closed one. {_of_base(each)}"
    head = ("model", "right, trained-on families, %", "right, unseen families, %", "well formed, %", "thought, words")
    return Table(caption, head, tuple(_result_cells(each, row) for row in each.rows))


def comparison_table(each: Numbers) -> Table:
    caption = f"Paired by question, on trained-on families; z is the difference over its standard error. {_of_base(each)}"
    head = ("comparison", "difference, points", "standard error", "z", "questions")
    return Table(caption, head, tuple(_comparison_cells(row) for row in each.comparisons))


def family_table(each: Numbers) -> Table:
    """A row a family, a column a subject."""
    families = list(dict.fromkeys(family for row in each.rows for family in row.families))
    rows = tuple((_family_heading(each, family), *(_family_cell(row, family) for row in each.rows)) for family in families)
    caption = f"Right answers in percent. {ESTIMATES} {_of_base(each)}"
    return Table(caption, ("family", *(_named(each, row) for row in each.rows)), rows)


def loss_table(each: Numbers) -> Table:
    head = ("stage", "unit", "at start", "after", "at start, without new tokens", "after, without new tokens", "rows")
    caption = f"Held-out rows under a stage's start and under its checkpoint. {_of_base(each)}"
    return Table(caption, head, tuple(_loss_cells(row) for row in each.held_out))


def preference_table(each: Numbers) -> Table:
    head = (
        "fault in the rejected reply",
        "",
        "accuracy, %",
        "margin, β × nats",
        "control: start's log-probs, %",
        "control: length only, %",
    )
    caption = (
        "Held-out pairs whose chosen reply has the higher implicit reward, beside what the start's own log-probs and the lengths alone "
        f"would choose. {ESTIMATES} {_of_base(each)}"
    )
    return Table(caption, head, tuple(_preference_cells(row) for row in each.preferences))


def _of_base(each: Numbers) -> str:
    return f"Base weights: {each.base}."


def _named(each: Numbers, row: ResultRow) -> str:
    return f"{row.label} ({each.base})" if row.subject in {BASE, FEW_SHOT} else row.label


def _result_cells(each: Numbers, row: ResultRow) -> tuple[Cell, ...]:
    return (Cell(_named(each, row)), share(row.trained), share(row.unseen), share(row.well_formed), mean(row.thought_words, 1))


def _comparison_cells(row: Comparison) -> tuple[Cell, ...]:
    difference = row.difference
    points, error = f"{100 * difference.mean:+.1f}", f"{100 * difference.standard_error:.1f}"
    return (Cell(row.label), number(points), number(error), number(f"{difference.z:.2f}"), number(f"{row.n:,}"))


def _family_heading(each: Numbers, family: str) -> Cell:
    return Cell(family, "unseen" if family in each.unseen_families else "")


def _family_cell(row: ResultRow, family: str) -> Cell:
    return share(row.families[family]) if family in row.families else number(ABSENT)


def _loss_cells(row: StageLoss) -> tuple[Cell, ...]:
    loss = row.loss
    values = (loss.loss_at_start, loss.loss, loss.loss_at_start_outside_new_tokens, loss.loss_outside_new_tokens)
    shown = [ABSENT if value is None or not loss.rows else f"{value:.4f}" for value in values]
    return (Cell(row.label), Cell(row.unit), *map(number, shown), number(f"{loss.rows:,}"))


def _preference_cells(row: PreferenceRow) -> tuple[Cell, ...]:
    scores = row.scores
    return (
        Cell(row.label),
        Cell("unseen in training" if row.unseen else "trained on"),
        share(scores.accuracy),
        mean(scores.margin, 3),
        share(scores.start_log_prob_accuracy),
        share(scores.length_accuracy),
    )
