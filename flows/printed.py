"""What the `trlm` command prints of a plan and of what a run left."""

import json
import os
from typing import Any

import typer

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import Recipe
from trlm_core.training.watch import Progress


def print_blend(store: Store, blended: Manifest | None, published: str | None, as_json: bool) -> None:
    assert blended is not None
    typer.echo(f"\nblend        {store.location(blended)}\nrows         {blended.counts['rows']:,}")
    typer.echo(f"card         {store.location(blended)}/README.md")
    _print_end(blended, published, as_json)


def print_training(store: Store, recipe: Recipe, stage: str, published: str | None, as_json: bool) -> None:
    from trlm_core.lineage import Lineage, finished

    checkpoint = finished(store, Lineage(recipe).checkpoint(recipe.stage(stage)))
    typer.echo(f"\ncheckpoint   {store.location(checkpoint)}\ntrained      {checkpoint.counts_line}")
    _print_end(checkpoint, published, as_json)


def _print_end(manifest: Manifest, published: str | None, as_json: bool) -> None:
    if published:
        typer.echo(f"published    {published}")
    if as_json:
        line: dict[str, Any] = {"address": manifest.address, "fingerprint": manifest.fingerprint, "counts": manifest.counts}
        typer.echo(json.dumps({**line, "published": published}))


def print_progress(progress: Progress) -> None:
    left = "" if progress.seconds_left is None else f", {progress.seconds_left / 60:.0f} minutes left"
    typer.echo(f"step {progress.step:,} of {progress.steps:,}{left}")


def print_plan(recipe: Recipe, execution: Execution) -> None:
    import yaml

    from trlm_core.plan import make_plan

    plan = make_plan(recipe, execution)
    typer.echo(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=120))
    typer.echo(f"{'stage':<20}{'rows':>10}{'tokens':>14}{'steps':>8}")
    for stage in plan.stages:
        typer.echo(f"{stage.stage:<20}{stage.rows:>10,}{stage.tokens:>14,}{stage.steps:>8,}")
    typer.echo(f"evaluation: at most {plan.generated_tokens:,} generated tokens")
    typer.echo(f"estimated: {plan.minutes:.0f} minutes on this machine, {plan.disk_gib} GiB of disk, {plan.memory_gib} GiB of memory")


def print_outcome(store: Store, recipe: Recipe, tracking_uri: str | None, as_json: bool) -> None:
    from tasks.place import database_in
    from trlm_core.lineage import finished, run_results
    from trlm_core.reports.page import report_spec

    results = run_results(store, recipe)
    report = finished(store, report_spec(results))
    page = store.folder(report) / "report.html"
    checkpoints = {stage.stage.name: store.location(stage.checkpoint) for stage in results.stages}
    typer.echo(f"\nreport       {page}")
    for name, folder in checkpoints.items():
        typer.echo(f"checkpoint   {name}: {folder}")
    typer.echo(f"MLflow       {_page_of_mlflow(tracking_uri or database_in(store))}")
    typer.echo(
        f"Prefect      {os.environ.get('PREFECT_API_URL') or 'prefect server start                    (then http://127.0.0.1:4200)'}"
    )
    typer.echo(f"goals        {report.counts['goals_reached']} of {report.counts['goals']} reached")
    if as_json:
        line = {
            "store": store.address,
            "report": str(page),
            "checkpoints": checkpoints,
            "fingerprints": {stage.stage.name: stage.checkpoint.fingerprint for stage in results.stages} | {"report": report.fingerprint},
            "evaluation": {subject: manifest.counts for subject, manifest in results.replies.items()},
        }
        typer.echo(json.dumps(line))


def _page_of_mlflow(uri: str) -> str:
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}    (then http://127.0.0.1:5000)"
