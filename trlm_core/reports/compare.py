"""The report's numbers, read from the artifacts alone: a row per subject, paired differences, held-out losses, preferences, goals.

One result row: {"subject": "stage2_sft_think", "label": "stage 2", "trained": {"mean": 0.71, "standard_error": 0.05, "n": 72}, ...}
"""

from dataclasses import dataclass

from trlm_core.artifacts.store import Store
from trlm_core.evals.harness import read_held_out, read_replies
from trlm_core.evals.held_out import HeldOutLoss, Preferences
from trlm_core.evals.reasoning import Difference, Estimate, ScoredReply, estimate, paired_difference
from trlm_core.recipes.schema import Goals
from trlm_core.reports.results import BASE, FEW_SHOT, RunResults

STAGE1, STAGE2, STAGE3 = "stage1_sft", "stage2_sft_think", "stage3_dpo"
STAGE_LABELS = {STAGE1: "stage 1", STAGE2: "stage 2", STAGE3: "stage 3"}
COMPARED = (
    (STAGE2, FEW_SHOT), (STAGE2, BASE), (STAGE2, STAGE1),
    (STAGE3, FEW_SHOT), (STAGE3, BASE), (STAGE3, STAGE1), (STAGE3, STAGE2),
)  # fmt: skip
LOSS_UNITS = {"sft": "nats a label token", "dpo": "apo_zero, 1 at its start by definition"}


@dataclass(frozen=True)
class ResultRow:
    """One subject's replies; every estimate carries its standard error and n."""

    subject: str
    label: str
    trained: Estimate  # accuracy on families that stages train on
    unseen: Estimate  # accuracy on families that no stage trains on
    well_formed: Estimate  # over all questions
    thought_words: Estimate  # over the replies that have a closed thought
    families: dict[str, Estimate]  # family -> accuracy


@dataclass(frozen=True)
class Comparison:
    """Accuracy of `subject` less that of `against`, paired by question, on the families that stages train on."""

    subject: str
    against: str
    label: str
    difference: Difference
    n: int  # questions


@dataclass(frozen=True)
class StageLoss:
    stage: str
    label: str
    unit: str
    loss: HeldOutLoss


@dataclass(frozen=True)
class PreferenceRow:
    stage: str
    label: str
    unseen: bool  # no training pair carries this fault
    scores: Preferences


@dataclass(frozen=True)
class Goal:
    name: str
    wanted: str
    got: str
    reached: bool


@dataclass(frozen=True)
class Numbers:
    """What results.json holds."""

    recipe: str
    variant: str
    base: str  # the label of the base's weights
    unseen_families: list[str]
    rows: list[ResultRow]
    comparisons: list[Comparison]
    goals: list[Goal]
    held_out: list[StageLoss]
    preferences: list[PreferenceRow]


def numbers(store: Store, results: RunResults) -> Numbers:
    recipe = results.recipe
    return Numbers(
        recipe=recipe.name,
        variant=recipe.variant,
        base=recipe.base.label,
        unseen_families=list(recipe.evaluation.unseen_families) if recipe.evaluation else [],
        rows=result_rows(store, results),
        comparisons=comparisons(store, results),
        goals=goals(store, results),
        held_out=stage_losses(store, results),
        preferences=preference_rows(store, results),
    )


def subject_label(subject: str) -> str:
    """`stage2_sft_think-start` -> `stage 2 before training (tokens merely initialised)`."""
    if subject in {BASE, FEW_SHOT}:
        return {BASE: "base", FEW_SHOT: "base, few-shot"}[subject]
    if subject.endswith("-start"):
        return f"{subject_label(subject.removesuffix('-start'))} before training (tokens merely initialised)"
    return STAGE_LABELS[subject]


def result_rows(store: Store, results: RunResults) -> list[ResultRow]:
    """A row for each subject that was evaluated, in the order of the results."""
    return [_result_row(subject, read_replies(store.folder(manifest))) for subject, manifest in results.replies.items()]


def comparisons(store: Store, results: RunResults) -> list[Comparison]:
    """The paired differences of COMPARED whose two subjects were evaluated."""
    trained = {
        subject: [reply for reply in read_replies(store.folder(manifest)) if reply.trained_on]
        for subject, manifest in results.replies.items()
    }
    return [
        Comparison(
            subject=subject,
            against=against,
            label=f"{subject_label(subject)} against {subject_label(against)}",
            difference=paired_difference(trained[subject], trained[against]),
            n=len(trained[subject]),
        )
        for subject, against in COMPARED
        if subject in trained and against in trained
    ]


def stage_losses(store: Store, results: RunResults) -> list[StageLoss]:
    return [
        StageLoss(
            stage=each.stage.name,
            label=STAGE_LABELS[each.stage.name],
            unit=LOSS_UNITS[each.stage.training.trainer],
            loss=read_held_out(store.folder(each.held_out)).loss,
        )
        for each in results.stages
    ]


def preference_rows(store: Store, results: RunResults) -> list[PreferenceRow]:
    """Unseen, seen, then each kind of fault, for every stage that was trained on pairs."""
    return [
        PreferenceRow(
            stage=each.stage.name,
            label={"unseen": "all faults that no stage trains on", "seen": "all faults trained on"}.get(scores.fault, scores.fault),
            unseen=scores.fault != "seen" and scores.fault not in each.stage.blend.faults,
            scores=scores,
        )
        for each in results.stages
        for scores in read_held_out(store.folder(each.held_out)).preferences
    ]


def goals(store: Store, results: RunResults) -> list[Goal]:
    """Every goal that applies to the stages that ran, reached or not; none where the recipe has no evaluation."""
    if results.recipe.evaluation is None:
        return []
    wanted = results.recipe.evaluation.goals
    return [
        *_form_goals(wanted, result_rows(store, results)),
        *(_loss_goal(each) for each in stage_losses(store, results)),
        *_preference_goals(wanted, results, preference_rows(store, results)),
        *_accuracy_goals(wanted, comparisons(store, results)),
    ]


def percent(value: Estimate) -> str:
    """`71.2% ± 5.3 (n = 72)`."""
    return f"{value.mean:.1%} ± {100 * value.standard_error:.1f} (n = {value.n:,})"


def _result_row(subject: str, replies: list[ScoredReply]) -> ResultRow:
    families = list(dict.fromkeys(reply.family for reply in replies))
    return ResultRow(
        subject=subject,
        label=subject_label(subject),
        trained=estimate(reply.right for reply in replies if reply.trained_on),
        unseen=estimate(reply.right for reply in replies if not reply.trained_on),
        well_formed=estimate(reply.well_formed for reply in replies),
        thought_words=estimate(reply.thought_words for reply in replies if reply.thought_words is not None),
        families={family: estimate(reply.right for reply in replies if reply.family == family) for family in families},
    )


def _form_goals(wanted: Goals, rows: list[ResultRow]) -> list[Goal]:
    return [
        Goal(
            name=f"{row.label}: replies are well formed",
            wanted=f"at least {100 * wanted.well_formed:g}%",
            got=percent(row.well_formed),
            reached=row.well_formed.mean >= wanted.well_formed,
        )
        for row in rows
        if row.subject in {STAGE2, STAGE3}
    ]


def _loss_goal(each: StageLoss) -> Goal:
    loss = each.loss
    name = f"{each.label}: held-out loss falls"
    if not loss.rows:
        return Goal(name, "below its start's", "no held-out rows", reached=False)
    return Goal(
        name, f"below its start's {loss.loss_at_start:.4f}", f"{loss.loss:.4f} ({loss.rows:,} rows)", loss.loss < loss.loss_at_start
    )


def _preference_goals(wanted: Goals, results: RunResults, rows: list[PreferenceRow]) -> list[Goal]:
    stages = [each.stage.name for each in results.stages if each.stage.training.trainer == "dpo"]
    return [goal for stage in stages for goal in _stage_preference_goals(wanted, stage, rows)]


def _stage_preference_goals(wanted: Goals, stage: str, rows: list[PreferenceRow]) -> list[Goal]:
    name = f"{STAGE_LABELS[stage]}: preference accuracy on unseen faults"
    scores = next((row.scores for row in rows if row.stage == stage and row.scores.fault == "unseen"), None)
    if scores is None:
        return [Goal(name, f"above {100 * wanted.preference_accuracy:g}%", "no held-out pairs with unseen faults", reached=False)]
    bars = {
        f"above {100 * wanted.preference_accuracy:g}%": wanted.preference_accuracy,
        f"above the start's own log-probs, {100 * scores.start_log_prob_accuracy.mean:.1f}%": scores.start_log_prob_accuracy.mean,
        f"above length only, {100 * scores.length_accuracy.mean:.1f}%": scores.length_accuracy.mean,
    }
    return [Goal(name, words, percent(scores.accuracy), scores.accuracy.mean > bar) for words, bar in bars.items()]


def _accuracy_goals(wanted: Goals, compared: list[Comparison]) -> list[Goal]:
    if wanted.z is None:
        return []
    return [
        Goal(
            name=f"{subject_label(each.subject)}: accuracy above {subject_label(each.against)}",
            wanted=f"z above {wanted.z:g}, paired",
            got=f"{100 * each.difference.mean:+.1f} points, z = {each.difference.z:.2f}",
            reached=each.difference.z > wanted.z,
        )
        for each in compared
        if each.subject in {STAGE2, STAGE3} and each.against in {FEW_SHOT, STAGE1}
    ]
