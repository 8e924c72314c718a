"""Report task: the page into the store, MLflow and the Prefect UI."""

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks.place import Place
from trlm_core.artifacts.manifest import Manifest
from trlm_core.lineage import run_results
from trlm_core.reports.page import write_report
from trlm_core.tracking import artifact_page, log_file


@task(name="write-report", task_run_name="report of {place.recipe.name}", tags=["report"], cache_policy=NO_CACHE)
def publish_report(place: Place) -> Manifest:
    manifest = write_report(place.store, run_results(place.store, place.recipe))
    folder = place.folder(manifest)
    create_markdown_artifact(key="result-table", markdown=(folder / "result_table.md").read_text(), description=place.recipe.name)
    page = (folder / "report.html").as_uri() if place.run is None else artifact_page(place.run, "report/report.html")
    create_link_artifact(key="report", link=page, description=f"report of {place.recipe.name}: {manifest.address}")
    if place.run is not None:
        for name in ("report.html", "results.json", "result_table.md", "manifest.json"):
            log_file(place.run, folder / name, "report")
    return manifest
