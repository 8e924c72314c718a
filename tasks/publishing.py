"""Publishing tasks: a blend to a dataset repository of the Hub, a checkpoint and its saves to a model repository."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from pydantic import BaseModel, ConfigDict, Field

from tasks.place import Place
from tasks.retries import OVER_A_NETWORK
from trlm_core.artifacts.manifest import Manifest
from trlm_core.data import publish
from trlm_core.data.errors import PublishConnectionError, PublishError
from trlm_core.data.repository import Publication
from trlm_core.lineage import finished
from trlm_core.recipes.schema import Stage
from trlm_core.reports.model_card import Parents, model_card, saved, trained
from trlm_core.training import publish as publish_model
from trlm_core.training.save_pusher import SavePusher

OnSave = Callable[[Path, int], None]


class Publishing(BaseModel):
    """Where a stage's checkpoint goes. None of it changes a number or enters a fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str = Field(description="Model repository on the Hub (owner/name); made private where there is none.")
    when: Literal["end", "saves"] = Field(default="end", description="Once, when the stage is finished, or every save of its training too.")


@task(
    name="check-repository",
    task_run_name="may write {repo}",
    **OVER_A_NETWORK,
)
def check_repository(repo: str) -> None:
    publish.check_repository(repo)


@task(
    name="publish-blend",
    task_run_name="publish {blended.name} to {repo}",
    **OVER_A_NETWORK,
)
def publish_blend(place: Place, blended: Manifest, repo: str) -> None:
    _show(blended, publish.publish(place.store, blended, repo))


@task(
    name="check-model-repository",
    task_run_name="may write {to.repo}",
    **OVER_A_NETWORK,
)
def check_model_repository(place: Place, stage: Stage, to: Publishing) -> None:
    check_publishing(place, stage, to)


def check_publishing(place: Place, stage: Stage, to: Publishing) -> None:
    """Before any work: what the card tells of is in the store, and the repository may be written."""
    _parents(place, stage)
    publish_model.check_repository(to.repo)


@task(
    name="publish-checkpoint",
    task_run_name="publish {checkpoint.name} to {repo}",
    **OVER_A_NETWORK,
)
def publish_checkpoint(place: Place, stage: Stage, checkpoint: Manifest, repo: str) -> None:
    """Raises what the push raises, with the checkpoint's address: it is finished whatever the Hub says."""
    try:
        published = publish_model.publish(place.store, checkpoint, checkpoint_card(place, stage, checkpoint, repo), repo)
    except (PublishError, PublishConnectionError) as error:
        raise type(error)(f"{checkpoint.address} is finished and stays in the store, but it is not published: {error}") from error
    _show(checkpoint, published)


def checkpoint_card(place: Place, stage: Stage, checkpoint: Manifest, repo: str) -> str:
    return model_card(place.recipe, stage, _parents(place, stage), trained(checkpoint, place.folder(checkpoint)), repo)


def found_checkpoint(place: Place, stage: Stage, repo: str) -> Publication | None:
    """The commit at which the repository is the stage's finished checkpoint."""
    checkpoint = finished(place.store, place.lineage.checkpoint(stage))
    return publish_model.found(place.store, checkpoint, checkpoint_card(place, stage, checkpoint, repo), repo)


@contextlib.contextmanager
def saves_pushed(place: Place, stage: Stage, to: Publishing | None) -> Iterator[OnSave]:
    """What is to be called with every save of the stage's training; what became of each push is shown at the end."""
    if to is None or to.when == "end":
        yield lambda folder, step: None
        return
    repo, spec = to.repo, place.lineage.checkpoint(stage)
    parents = _parents(place, stage)
    pusher = SavePusher(repo, lambda folder, step: model_card(place.recipe, stage, parents, saved(spec, folder), repo))
    try:
        yield pusher.push
    finally:
        rows = [{"step": each.step, "outcome": each.outcome, "told": each.told} for each in pusher.close()]
        if rows:
            create_table_artifact(key=f"pushed-saves-{stage.name.replace('_', '-')}", table=rows, description=f"{stage.name} to {repo}")


def _parents(place: Place, stage: Stage) -> Parents:
    """Raises MissingArtifactError where the store lacks what the card tells of."""
    lineage, chain = place.lineage, {"base": place.lineage.base().fingerprint}
    for each in _ancestors(place, stage):
        chain[each.name] = lineage.checkpoint(each).fingerprint
    return Parents(chain, finished(place.store, lineage.blend(stage)), finished(place.store, lineage.dataset(stage)))


def _ancestors(place: Place, stage: Stage) -> list[Stage]:
    """Oldest first."""
    if stage.parent == "base":
        return []
    parent = place.recipe.stage(stage.parent)
    return [*_ancestors(place, parent), parent]


def _show(published: Manifest, publication: Publication) -> None:
    create_link_artifact(
        key=f"published-{published.name.replace('_', '-')}",
        link=publication.url,
        link_text=f"{publication.repo} @ {publication.commit[:12]}",
        description=f"{published.address} {'published' if publication.is_new else 'was there already'}",
    )
