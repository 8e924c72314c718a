"""The lineage of a recipe: the spec of every artifact that it leads to, each made from those before it, known before anything is built.

Whoever holds the recipe and the store's address finds the work of others by it: nothing else is handed over.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.base_model import base_spec
from trlm_core.data.blend import blend_spec
from trlm_core.data.sources import source_spec
from trlm_core.data.stage_dataset import stage_dataset_spec
from trlm_core.evals.specs import held_out_spec, questions_spec, replies_spec
from trlm_core.recipes.schema import Evaluation, Recipe, Stage
from trlm_core.reports.results import BASE, FEW_SHOT, RunResults, StageResult
from trlm_core.training.specs import checkpoint_spec, start_spec


class MissingArtifactError(ValueError):
    """An artifact that the next step reads is not finished; the message says which, and what makes it."""


@dataclass(frozen=True)
class Subject:
    """What answers the questions: a checkpoint under a stage's template."""

    name: str
    stage: Stage
    checkpoint: Spec
    shots: bool  # with solved questions before each


@dataclass(frozen=True)
class Lineage:
    recipe: Recipe

    @property
    def evaluation(self) -> Evaluation:
        if self.recipe.evaluation is None:
            raise ValueError(f"recipe {self.recipe.name}: wanted an evaluation, got null")
        return self.recipe.evaluation

    def base(self) -> Spec:
        return base_spec(self.recipe.base)

    def blend(self, stage: Stage) -> Spec:
        base = self.base()
        return blend_spec(self.recipe, stage, [source_spec(self.recipe, stage, source, base) for source in stage.blend.sources], base)

    def dataset(self, stage: Stage) -> Spec:
        return stage_dataset_spec(self.recipe, stage, self.blend(stage), self.base())

    def parent(self, stage: Stage) -> Spec:
        return self.base() if stage.parent == "base" else self.checkpoint(self.recipe.stage(stage.parent))

    def start(self, stage: Stage) -> Spec:
        """The parent itself where the stage adds no token."""
        if stage.rendering.new_tokens is None:
            return self.parent(stage)
        return start_spec(self.recipe, stage, self.dataset(stage), self.parent(stage))

    def checkpoint(self, stage: Stage) -> Spec:
        return checkpoint_spec(self.recipe, stage, self.dataset(stage), self.start(stage))

    def held_out(self, stage: Stage) -> Spec:
        return held_out_spec(self.recipe, stage, self.checkpoint(stage), self.start(stage), self.dataset(stage))

    def questions(self) -> Spec:
        return questions_spec(self.recipe, self.evaluation)

    def replies(self, subject: Subject) -> Spec:
        rendering, questions = subject.stage.rendering, self.questions()
        return replies_spec(self.recipe, self.evaluation, subject.name, subject.checkpoint, questions, rendering, shots=subject.shots)

    def subjects(self) -> list[Subject]:
        """The base (also few-shot), each stage, and before it its start where the stage adds tokens."""
        first = self.recipe.stages[0]
        return [Subject(BASE, first, self.base(), False), Subject(FEW_SHOT, first, self.base(), True), *self._stage_subjects()]

    def chosen_subjects(self, names: Sequence[str]) -> list[Subject]:
        """Those named, or all where none is. Raises ValueError for a name that the recipe does not have."""
        known = {subject.name: subject for subject in self.subjects()}
        if unknown := sorted(set(names) - known.keys()):
            raise ValueError(f"subjects: wanted some of {', '.join(known)}, got {', '.join(unknown)}")
        return [known[name] for name in names or known]

    def _stage_subjects(self) -> Iterator[Subject]:
        for stage in self.recipe.stages:
            if stage.rendering.new_tokens is not None:
                yield Subject(f"{stage.name}-start", stage, self.start(stage), False)
            yield Subject(stage.name, stage, self.checkpoint(stage), False)


def finished(store: Store, spec: Spec) -> Manifest:
    """The finished artifact of this spec. Raises MissingArtifactError."""
    found = store.find(spec)
    if found is None:
        raise MissingArtifactError(
            f"store {store.address}: wanted {spec.kind}/{spec.group}/{spec.name} with fingerprint {spec.fingerprint[:12]}, got none "
            f"finished; run {_maker(spec)} with the same recipe and settings first"
        )
    return found


def all_finished(store: Store, *specs: Spec) -> list[Manifest]:
    """The finished artifacts of these specs where every one is there, else none."""
    found = [store.find(spec) for spec in specs]
    return [manifest for manifest in found if manifest is not None] if all(found) else []


def _maker(spec: Spec) -> str:
    """The deployment that builds it."""
    if spec.name == "questions":
        return "evaluate/checkpoint"
    stage = next((number for number in "123" if spec.name.startswith(f"stage{number}")), None)
    if spec.kind == "evals" and not spec.name.endswith("-held-out"):
        return "evaluate/checkpoint"
    if stage is None:
        return "blend/stage-1"
    return f"{'blend' if spec.kind == 'datasets' else 'train'}/stage-{stage}"


def run_results(store: Store, recipe: Recipe) -> RunResults:
    """Everything that the report reads, as it lies finished in the store. Raises MissingArtifactError."""
    lineage = Lineage(recipe)
    replies = {subject.name: finished(store, lineage.replies(subject)) for subject in lineage.subjects()}
    stages = tuple(_stage_result(store, lineage, stage) for stage in recipe.stages)
    return RunResults(recipe, finished(store, lineage.base()), finished(store, lineage.questions()), stages, replies)


def _stage_result(store: Store, lineage: Lineage, stage: Stage) -> StageResult:
    specs = (lineage.blend(stage), lineage.dataset(stage), lineage.start(stage), lineage.checkpoint(stage), lineage.held_out(stage))
    return StageResult(stage, *(finished(store, spec) for spec in specs))
