"""Tables of a TRM run: gates, every row of the evaluation with what an answer costs, ablations, sizes."""

from collections.abc import Mapping, Sequence

from trlm_core.artifacts.manifest import Manifest
from trlm_core.recipes.trm_schema import TRMRecipe
from trlm_core.reports.table import ABSENT, Cell, Table, number, verdict
from trlm_core.trm.config import net_alone, training_cost_of_a_step
from trlm_core.trm.evaluate import HALTING, PHASE2, TRM, Evaluation, EvaluationRow, at_least
from trlm_core.trm.phase2 import recursion_at
from trlm_core.trm.phase_models import recursion_of

LABELS = {
    "direct": "no thought",
    "text": "a thought in text, its own",
    "text_oracle": "the right thought in text",
    "oracle_latents": "the right thought in latents (ceiling)",
    "pre_latents": "the prompt's latents, no TRM",
    "mean_latent": "the mean thought",
    "pause": "pause tokens (learned constants)",
    "nonrecursive": "the same parameters without recursion",
    "direct_tuned": "the language model itself, fine-tuned, no thought",
    HALTING: "TRM, until its own head is content",
}
OF_PHASE = {TRM: "TRM", PHASE2: "TRM after phase 2"}
PHASE_WORDS = {
    "oracle_over_text": "the right thought in latents, against the share of it in text",
    "over_direct": "TRM over no thought",
    "over_nonrecursive": "TRM over its twin without recursion",
    "best_over_first_step": "the best number of supervision steps over the first",
    "reward_gain": "mean reward over before",
    "accuracy_gain": "accuracy over before",
}


def row_label(name: str) -> str:
    if name in LABELS:
        return LABELS[name]
    phase, _, steps = name.partition("/")
    return f"{OF_PHASE[phase]}, {steps} supervision step{'s' if int(steps) > 1 else ''}"


def gate_table(measured: Mapping[str, Manifest]) -> Table:
    """measured: phase -> its measurement."""
    rows = tuple(
        (
            Cell(phase.replace("phase", "phase ")),
            Cell(PHASE_WORDS[claim["name"]]),
            number(at_least(claim["wanted"])),
            number(f"{claim['got']:.3f}"),
            verdict(claim["holds"], "holds", "does not hold"),
        )
        for phase, manifest in measured.items()
        for claim in manifest.counts["claims"]
    )
    return Table("Measured on the validation split.", ("phase", "claim", "wanted", "got", ""), rows)


def row_table(evaluation: Evaluation, split: str) -> Table:
    caption = (
        f"{evaluation.examples:,} examples of {split}, greedy decoding; an answer is right when every token of it is. Operations count the "
        "matrices that a position goes through; tokens: how many the same language model would write for them. Beside the halting head's "
        "share: that of a head which says the same of every answer."
    )
    head = (
        "row",
        "exact, %",
        "supervision steps",
        "head right, %",
        "tokens written",
        "latents",
        "operations an answer",
        "as generated tokens",
        "s in all",
    )
    return Table(caption, head, tuple(_row(row, evaluation.examples) for row in evaluation.rows))


def ablation_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """A row a run, its TRM rows by their steps."""
    names = list(dict.fromkeys(row.name for each in evaluations.values() for row in each.rows if row.name.startswith(f"{TRM}/")))
    rows = tuple((Cell(label), *_by_name(each, names)) for label, each in evaluations.items())
    return Table("Exact answers, %, and operations an answer; changed against this recipe.", ("changed", *map(row_label, names)), rows)


def size_table(evaluation: Evaluation) -> Table:
    sizes = {"language model": evaluation.language_model_parameters, "thinker": evaluation.thinker_parameters}
    rows = tuple((Cell(name), number(f"{size:,}")) for name, size in sizes.items())
    return Table("Parameters; the thinker is recursion, compressor, expander, projector and head.", ("part", "parameters"), rows)


def training_table(recipe: TRMRecipe) -> Table:
    """What the trainings of the thinker and of its rivals took: a rival that got less of it is a weaker one than it could be."""
    schedules = {"phase2": recipe.phase2.training, **{name: schedule for name, schedule in recipe.controls if schedule is not None}}
    rows = tuple(
        (
            Cell("TRM, phase 2" if name == "phase2" else LABELS[name]),
            number(f"{schedule.steps:,}"),
            number(f"{schedule.batch:,}"),
            number(_or_absent(layer_passes(recipe, name), "{:,}")),
        )
        for name, schedule in schedules.items()
    )
    caption = (
        "Trainings. Layer passes of the recursion for each row of a batch, over all steps: a forward counts 1, its backward 2; what is "
        "trained without a recursion has none. The language model's own passes are not among them."
    )
    return Table(caption, ("row", "optimizer steps", "rows a step", "layer passes"), rows)


def layer_passes(recipe: TRMRecipe, training: str) -> int | None:
    full, schedule = recursion_of(recipe.model), recipe.controls.nonrecursive
    if training == "phase2":
        return sum(training_cost_of_a_step(recursion_at(recipe.phase2, full, step)) for step in range(recipe.phase2.training.steps))
    return training_cost_of_a_step(net_alone(full)) * schedule.steps if training == "nonrecursive" and schedule else None


def exact_cell(row: EvaluationRow, examples: int) -> Cell:
    return Cell(f"{100 * row.exact:.1f}", f"± {100 * row.standard_error:.1f} ({examples:,})", "number")


def _head_cell(row: EvaluationRow) -> Cell:
    if row.halt_accuracy is None:
        return number(ABSENT)
    return Cell(f"{100 * row.halt_accuracy:.1f}", f"against {100 * row.majority:.1f}", "number")


def operations(count: float) -> str:
    """3.42e11 -> `342 G`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:.0f}"


def _row(row: EvaluationRow, examples: int) -> tuple[Cell, ...]:
    return (
        Cell(row_label(row.name)),
        exact_cell(row, examples),
        number(_or_absent(row.steps, "{:.1f}")),
        _head_cell(row),
        number(f"{row.visible_tokens:.1f}"),
        number(f"{row.latent_positions}"),
        number(operations(row.flops)),
        number(f"{row.generated_token_equivalents:,.1f}"),
        number(f"{row.seconds:,.1f}"),
    )


def _by_name(evaluation: Evaluation, names: Sequence[str]) -> list[Cell]:
    rows = {row.name: row for row in evaluation.rows}
    return [_exact_and_cost(rows[name]) if name in rows else number(ABSENT) for name in names]


def _exact_and_cost(row: EvaluationRow) -> Cell:
    return Cell(f"{100 * row.exact:.1f}", f"± {100 * row.standard_error:.1f}, {operations(row.flops)}", "number")


def _or_absent(value: float | None, form: str) -> str:
    return ABSENT if value is None else form.format(value)
