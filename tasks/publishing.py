"""Publishing tasks: a blend to a dataset repository of the Hub."""

from prefect import task
from prefect.artifacts import create_link_artifact

from tasks.place import Place
from tasks.retries import OVER_A_NETWORK
from trlm_core.artifacts.manifest import Manifest
from trlm_core.data import publish


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
    published = publish.publish(place.store, blended, repo)
    create_link_artifact(
        key=f"published-{blended.name.replace('_', '-')}",
        link=published.url,
        link_text=f"{repo} @ {published.commit[:12]}",
        description=f"{blended.address} {'published' if published.is_new else 'was there already'}",
    )
