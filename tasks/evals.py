"""Evaluation tasks: a checkpoint answers the questions; a stage's held-out rows are scored."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.place import Place
from tasks.progress import bar
from tasks.runs import built
from trlm_core.artifacts.manifest import Manifest
from trlm_core.evals import harness, suites
from trlm_core.lineage import Subject
from trlm_core.recipes.schema import Stage
from trlm_core.tracking import RunAddress, flattened, log_file, log_metrics


@task(name="make-questions", task_run_name="questions of {place.recipe.name}", tags=["data"], cache_policy=NO_CACHE)
def make_questions(place: Place) -> Manifest:
    return suites.make_questions(place.store, place.recipe, place.evaluation)


@task(name="answer-questions", task_run_name="ask {subject.name}", tags=["evaluation"], cache_policy=NO_CACHE)
def answer_questions(place: Place, subject: Subject, checkpoint: Manifest, questions: Manifest) -> Manifest:
    """Replies of the checkpoint under its stage's template."""

    def build(run: RunAddress) -> Manifest:
        with bar(f"ask {subject.name}", "question") as show:
            manifest = harness.answer_questions(
                place.store,
                place.recipe,
                place.evaluation,
                subject.name,
                checkpoint,
                questions,
                place.execution,
                rendering=subject.stage.rendering,
                shots=subject.shots,
                on_progress=show,
            )
        log_metrics(run, flattened(manifest.counts))
        log_file(run, place.folder(manifest) / harness.REPLIES)
        return manifest

    spec = place.lineage.replies(subject)
    return built(place, spec, {"subject": subject.name, "evaluation": place.evaluation.model_dump(mode="json")}, build)


@task(name="score-held-out", task_run_name="held-out rows of {stage.name}", tags=["evaluation"], cache_policy=NO_CACHE)
def score_held_out(place: Place, stage: Stage, checkpoint: Manifest, start: Manifest, dataset: Manifest) -> Manifest:
    def build(run: RunAddress) -> Manifest:
        with bar(f"held-out rows of {stage.name}", "row") as show:
            manifest = harness.score_held_out(
                place.store, place.recipe, stage, checkpoint, start, dataset, place.execution, on_progress=show
            )
        log_metrics(run, {key: value for key, value in manifest.counts.items() if isinstance(value, int | float)})
        log_file(run, place.folder(manifest) / harness.HELD_OUT)
        return manifest

    spec = harness.held_out_spec(place.recipe, stage, checkpoint, start, dataset)
    return built(place, spec, {"stage": stage.name}, build)
