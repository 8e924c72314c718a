"""TRM tasks: thoughts, base and states; phases and controls; what they measure and their gates; evaluation and report."""

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.curve import LiveCurve
from tasks.progress import bar
from tasks.retries import OVER_A_NETWORK
from tasks.runs import built, trained
from tasks.trm_place import TRMPlace
from trlm_core.artifacts.manifest import Manifest
from trlm_core.reports.trm_page import PAGE, RESULTS, write_trm_report
from trlm_core.tracking import RunAddress, artifact_page, flattened, log_file, log_history, log_metrics, register_checkpoint
from trlm_core.training.checkpoint import HISTORY, read_history
from trlm_core.training.watch import Progress
from trlm_core.trm import material, phase_measures, results
from trlm_core.trm.evaluate import EvaluationRow, OnRow
from trlm_core.trm.material import Made
from trlm_core.trm.phase_checkpoints import PhaseTraining
from trlm_core.trm.phase_trainer import PhaseProgress
from trlm_core.trm.specs import Control, Phase, measured_role
from trlm_core.trm.states import make_states

MakeOf = Callable[[PhaseTraining], Manifest]


def material_of(place: TRMPlace) -> dict[str, Manifest]:
    """Thoughts, base and states. A trained base is made of the thoughts; a base's own traces are made by it."""
    tasks = {"thoughts": make_thoughts, "base": make_base, "states": cache_states}
    made: dict[str, Manifest] = {}
    for role in list(place.lineage.specs)[: len(tasks)]:
        made[role] = tasks[role](place, made)
    return made


@task(name="make-thoughts", task_run_name="thoughts of {place.recipe.name}", tags=["data"], cache_policy=NO_CACHE)
def make_thoughts(place: TRMPlace, made: Made) -> Manifest:
    def build(run: RunAddress) -> Manifest:
        with bar("thoughts", "thought") as show:
            manifest = material.make_thoughts(place.store, place.recipe, made, place.execution, show)
        log_metrics(run, _numbers(manifest))
        return manifest

    return built(place, place.lineage.specs["thoughts"], place.recipe.data.model_dump(mode="json"), build)


@task(name="make-trm-base", task_run_name="base of {place.recipe.name}", **OVER_A_NETWORK)
def make_base(place: TRMPlace, made: Made) -> Manifest:
    spec = place.lineage.specs["base"]

    def build(run: RunAddress) -> Manifest:
        with bar("base", "step") as show:
            manifest = material.make_base(place.store, place.recipe, spec, made, place.execution, show)
        log_history(run, read_history(place.folder(manifest)))
        return manifest

    return trained(place, spec, place.recipe.base.model_dump(mode="json"), build)


@task(name="cache-states", task_run_name="states of {place.recipe.name}", tags=["data"], cache_policy=NO_CACHE)
def cache_states(place: TRMPlace, made: Made) -> Manifest:
    def build(run: RunAddress) -> Manifest:
        device = material.usable_device(place.execution)
        with bar("hidden states", "row") as show:
            manifest = make_states(place.store, place.recipe, made["base"], made["thoughts"], "train", device, show)
        log_metrics(run, _numbers(manifest))
        return manifest

    return built(place, place.lineage.specs["states"], {"hidden_layer": place.recipe.model.hidden_layer}, build)


@task(name="train-phase", task_run_name="train {phase}", tags=["training"], cache_policy=NO_CACHE)
def train_phase(place: TRMPlace, phase: Phase, made: Made) -> Manifest:
    params = getattr(place.recipe, phase).model_dump(mode="json")

    def make(training: PhaseTraining) -> Manifest:
        return training.phase(phase)

    return _trained(place, phase, {"model": place.recipe.model.model_dump(mode="json"), phase: params}, made, make)


@task(name="train-control", task_run_name="train {control}", tags=["training"], cache_policy=NO_CACHE)
def train_control(place: TRMPlace, control: Control, made: Made) -> Manifest:
    """What the thinker is measured against."""
    params = getattr(place.recipe.controls, control).model_dump(mode="json")

    def make(training: PhaseTraining) -> Manifest:
        return training.control(control)

    return _trained(place, control, {control: params}, made, make)


@task(name="measure-phase", task_run_name="measure {phase}", tags=["evaluation"], cache_policy=NO_CACHE)
def measure_phase(place: TRMPlace, phase: Phase, made: Made) -> Manifest:
    def build(run: RunAddress) -> Manifest:
        with bar(f"measure {phase}", "row") as show:
            manifest = phase_measures.make_measure(place.store, place.recipe, phase, made, place.execution, _counted(show))
        log_metrics(run, flattened({"exact": manifest.counts["exact"], **manifest.counts["metrics"]}))
        return manifest

    params = {"phase": phase, "evaluation": place.recipe.evaluation.model_dump(mode="json")}
    return built(place, place.lineage.specs[measured_role(phase)], params, build)


@task(name="check-gate", task_run_name="gate of {phase}", tags=["evaluation"], cache_policy=NO_CACHE)
def check_gate(place: TRMPlace, phase: Phase, measured: Manifest) -> None:
    """Raises GateError. The page shows what was wanted and got, whether it holds or not."""
    table = [{key: str(value) for key, value in claim.items()} for claim in measured.counts["claims"]]
    if table:
        create_table_artifact(key=f"gate-{phase}", table=table, description=f"gate of {phase}: {measured.address}")
    phase_measures.check_gate(place.recipe, phase, measured)


@task(name="evaluate-thinker", task_run_name="evaluate {place.recipe.name}", tags=["evaluation"], cache_policy=NO_CACHE)
def evaluate_thinker(place: TRMPlace, made: Made) -> Manifest:
    def build(run: RunAddress) -> Manifest:
        with bar("evaluate", "row") as show:
            manifest = results.make_evaluation(place.store, place.recipe, made, place.execution, _counted(show))
        folder = place.folder(manifest)
        for row in results.read_evaluation(folder).rows:
            log_metrics(run, {f"exact/{row.name}": row.exact, f"flops_per_answer/{row.name}": row.flops})
        for name in (results.EVALUATION, results.HALTING, results.EXAMPLES):
            log_file(run, folder / name)
        return manifest

    return built(place, place.lineage.specs["evaluation"], place.recipe.evaluation.model_dump(mode="json"), build)


@task(name="write-trm-report", task_run_name="report of {place.recipe.name}", tags=["report"], cache_policy=NO_CACHE)
def publish_trm_report(place: TRMPlace) -> Manifest:
    manifest = write_trm_report(place.store, place.lineage.results(place.store))
    folder = place.folder(manifest)
    page = (folder / PAGE).as_uri() if place.run is None else artifact_page(place.run, f"report/{PAGE}")
    create_link_artifact(key="trm-report", link=page, description=f"report of {place.recipe.name}: {manifest.address}")
    if place.run is not None:
        for name in (PAGE, RESULTS, "manifest.json"):
            log_file(place.run, folder / name, "report")
    return manifest


def _trained(place: TRMPlace, role: Phase | Control, params: dict[str, Any], made: Made, make: MakeOf) -> Manifest:
    def build(run: RunAddress) -> Manifest:
        curve = LiveCurve(role)
        with bar(f"train {role}", "step") as show:

            def on_progress(progress: PhaseProgress) -> None:
                loss = progress.metrics.get("loss")
                show(progress.done, progress.steps, "" if loss is None else f"loss {loss:.3f}")
                curve.add(_as_progress(progress, loss))

            training = PhaseTraining.of(place.store, place.recipe, made, place.execution, run, on_progress)
            manifest = make(training)
        history = read_history(place.folder(manifest))
        curve.finish(history)
        log_file(run, place.folder(manifest) / HISTORY)
        if role == "direct_tuned":  # of the others, every step is logged as it is done
            log_history(run, history)
        register_checkpoint(
            run, name=f"{place.recipe.name}.{role}", address=place.store.location(manifest), fingerprint=manifest.fingerprint
        )
        return manifest

    return trained(place, place.lineage.specs[role], params, build)


def _as_progress(progress: PhaseProgress, loss: float | None) -> Progress:
    return Progress(
        phase="training", step=progress.done, steps=progress.steps, done_before=progress.done_before, seconds=progress.seconds, loss=loss
    )


def _counted(show: Callable[..., None]) -> OnRow:
    """A measurement may evaluate more than once: the bar goes to the end of the one that is under way."""
    done = 0

    def on_row(row: EvaluationRow, left: int) -> None:
        nonlocal done
        done += 1
        show(done, done + left, f"{row.name} {100 * row.exact:.1f} %")

    return on_row


def _numbers(manifest: Manifest) -> dict[str, float]:
    return {key: value for key, value in flattened(manifest.counts).items() if isinstance(value, int | float)}
