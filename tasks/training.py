"""Training tasks: a stage's start, and the stage itself in a process of its own."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.curve import LiveCurve
from tasks.place import Place
from tasks.progress import bar
from tasks.publishing import Publishing, saves_pushed
from tasks.retries import if_it_can_go_on
from tasks.runs import trained
from trlm_core.artifacts.manifest import Manifest
from trlm_core.recipes.schema import Stage
from trlm_core.tracking import RunAddress, log_dataset, register_checkpoint
from trlm_core.training import new_tokens
from trlm_core.training.checkpoint import read_history
from trlm_core.training.specs import checkpoint_spec
from trlm_core.training.stage import StageTraining
from trlm_core.training.watch import Progress


@task(name="add-tokens", task_run_name="start of {stage.name}", tags=["training"], cache_policy=NO_CACHE)
def add_tokens(place: Place, stage: Stage, dataset: Manifest, parent: Manifest) -> Manifest:
    return new_tokens.make_start(place.store, place.recipe, stage, dataset, parent)


@task(
    name="train-stage",
    task_run_name="train {stage.name}",
    tags=["training"],
    retries=4,
    retry_delay_seconds=5,
    retry_condition_fn=if_it_can_go_on,
    cache_policy=NO_CACHE,
)
def train_stage(place: Place, stage: Stage, dataset: Manifest, start: Manifest, publish: Publishing | None) -> Manifest:
    def build(run: RunAddress) -> Manifest:
        log_dataset(
            run,
            name=f"{place.recipe.name}/{stage.name}-tokens",
            fingerprint=dataset.fingerprint,
            source=place.store.location(dataset),
            profile=dataset.counts,
            context="training",
        )
        curve = LiveCurve(stage.name)
        with bar(f"train {stage.name}", "step") as show, saves_pushed(place, stage, publish) as on_save:

            def on_progress(progress: Progress) -> None:
                show(progress.step, progress.steps, _note(progress))
                curve.add(progress)

            training = StageTraining(place.store, place.recipe, stage, dataset, start, place.execution, run, on_progress, on_save)
            manifest = training.checkpoint()
        curve.finish(read_history(place.folder(manifest)))
        name = f"{place.recipe.name}.{stage.name}"
        register_checkpoint(run, name=name, address=place.store.location(manifest), fingerprint=manifest.fingerprint)
        return manifest

    spec = checkpoint_spec(place.recipe, stage, dataset, start)
    return trained(place, spec, stage.model_dump(mode="json", exclude={"blend"}), build)


def _note(progress: Progress) -> str:
    if progress.phase == "reference":
        return "pairs, reference log-probs"
    return "" if progress.loss is None else f"loss {progress.loss:.3f}"
