"""The command `trlm`: run a recipe, show one, list a store."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.commands import AsJson, Device, Name, Settings, StoreAddress, TrackingAddress, clear_errors, set_up_environment
from flows.printed import print_blend, print_outcome, print_plan, print_progress, print_training
from flows.run_server import run_server
from flows.trm_cli import chat, trm_app
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.recipes.execution import Execution, check_group
from trlm_core.recipes.load import load_recipe, lock_path, overlay_names, recipe_names
from trlm_core.recipes.lock import read_lock, write_lock
from trlm_core.recipes.schema import Recipe

if TYPE_CHECKING:
    from flows.parameters import RecipeChoice

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Turn a tiny language model into a reasoning one."
)
recipe_app = typer.Typer(no_args_is_help=True, help="Show recipes and their schema.")
store_app = typer.Typer(no_args_is_help=True, help="Look into a store.")
app.add_typer(recipe_app, name="recipe")
app.add_typer(store_app, name="store")
app.add_typer(trm_app, name="trm")
app.command()(chat)

StageOf = Annotated[str, typer.Argument(help="stage1_sft, stage2_sft_think or stage3_dpo.")]
Variant = Annotated[str | None, typer.Option(help="Overlay of the recipe: report, reference or improved.")]
Budget = Annotated[str | None, typer.Option(help="Overlay of the recipe: a larger budget.")]
TokensPerMicroBatch = Annotated[int | None, typer.Option(help="Padded tokens of one forward; changes no number.")]
Home = Annotated[Path, typer.Option(help="Folder of their databases and logs.")]


@app.command()
def run(
    name: Name,
    variant: Variant = None,
    budget: Budget = None,
    settings: Settings = None,
    store: StoreAddress = "runs",
    tracking_uri: TrackingAddress = None,
    device: Device = "auto",
    tokens_per_micro_batch: TokensPerMicroBatch = None,
    dry_run: Annotated[bool, typer.Option(help="Print the resolved recipe and the plan, then stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe from its sources to its report."""
    with clear_errors():
        recipe = load_recipe(name, variant=variant, budget=budget, settings=settings or [])
        execution = Execution.model_validate({"device": device, "tokens_per_micro_batch": tokens_per_micro_batch})
        if dry_run:
            return print_plan(recipe, execution)
        opened = Store.open(store)
        choice = {"name": name, "variant": variant, "budget": budget, "settings": tuple(settings or ())}
        where = {"store": opened.address, "tracking_uri": tracking_uri, "execution": execution}
        _run_pipeline(recipe, opened, choice, where)
    print_outcome(opened, recipe, tracking_uri, as_json)
    return None


@app.command()
def blend(
    name: Name,
    stage: StageOf,
    variant: Variant = None,
    budget: Budget = None,
    settings: Settings = None,
    latest: Annotated[bool, typer.Option(help="Follow the sources: resolve names of revisions now, whatever the lock says.")] = False,
    publish: Annotated[
        str | None, typer.Option(metavar="REPO", help="Dataset repository on the Hub, owner/name, for data and card; made private.")
    ] = None,
    runner: Annotated[
        Literal["threads", "ray"], typer.Option(help="What reads the sources: threads, or a Ray cluster (RAY_ADDRESS, else its own).")
    ] = "threads",
    store: StoreAddress = "runs",
    tracking_uri: TrackingAddress = None,
    as_json: AsJson = False,
) -> None:
    """Build one stage's blend and stage dataset from their sources."""
    with clear_errors():
        opened = Store.open(store)
        choice = _resolved({"name": name, "variant": variant, "budget": budget, "settings": tuple(settings or ())}, latest)
        kept = _kept_blend(opened, choice.load(), stage)
        ran = kept is None
        if kept is None:
            _run_blend(opened, stage, choice, {"store": opened.address, "tracking_uri": tracking_uri}, publish, runner)
            kept = _kept_blend(opened, choice.load(), stage)
        else:
            typer.echo("Cached: the sources give what is there already; no row was read")
        published = _published(opened, kept, publish, ran) if publish else None
    print_blend(opened, kept, published, as_json)


@app.command()
def train(
    name: Name,
    stage: StageOf,
    variant: Variant = None,
    budget: Budget = None,
    settings: Settings = None,
    publish: Annotated[
        str | None, typer.Option(metavar="REPO", help="Model repository on the Hub, owner/name, for checkpoint and card; made private.")
    ] = None,
    publish_when: Annotated[
        Literal["end", "saves"], typer.Option(help="When: once the stage is finished, or every save of its training too.")
    ] = "end",
    store: StoreAddress = "runs",
    tracking_uri: TrackingAddress = None,
    device: Device = "auto",
    tokens_per_micro_batch: TokensPerMicroBatch = None,
    processes: Annotated[int, typer.Option(help="Of the training on each machine, one a GPU.")] = 1,
    sharding: Annotated[
        Literal["none", "full"], typer.Option(help="Full: each process holds its part of weights, gradients and moments (FSDP).")
    ] = "none",
    compile_layers: Annotated[bool, typer.Option("--compile", help="The decoder layers by torch.compile; changes no number.")] = False,
    nodes: Annotated[int, typer.Option(help="Machines; on each this command, with a --node-rank of its own.")] = 1,
    node_rank: Annotated[int, typer.Option(help="Which of them this is; 0 has tracking, saves, store and publishing.")] = 0,
    rendezvous: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Of node 0, where they meet.")] = None,
    save_steps: Annotated[
        int | None, typer.Option(help="Steps from one save to the next; by default the report's, or by time alone.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train one stage from its finished stage dataset and its parent checkpoint."""
    with clear_errors():
        opened = Store.open(store)
        choice = {"name": name, "variant": variant, "budget": budget, "settings": tuple(settings or ())}
        recipe = load_recipe(**choice)
        _check_stage(recipe, stage)
        how = {"device": device, "tokens_per_micro_batch": tokens_per_micro_batch, "save_steps": save_steps, "compile": compile_layers}
        group = {"processes": processes, "sharding": sharding, "nodes": nodes, "node_rank": node_rank, "rendezvous": rendezvous}
        execution = Execution.model_validate({**how, **group})
        check_group(execution, recipe.stage(stage).training.sequences_per_step)
        if node_rank:
            return _take_part(opened, recipe, stage, execution)
        where = {"store": opened.address, "tracking_uri": tracking_uri, "execution": execution}
        published = _run_training(stage, choice, where, {"repo": publish, "when": publish_when} if publish else None)
    print_training(opened, recipe, stage, published, as_json)
    return None


@recipe_app.command("lock")
def lock(name: Name, variant: Variant = None, budget: Budget = None) -> None:
    """Resolve the names among the revisions (main) of every variant, or of one, and write them beside the recipe."""
    from trlm_core.data.revisions import resolved

    with clear_errors():
        variants = [variant] if variant else overlay_names(name, "variants") or [None]
        pins: dict[str, str] = {}
        for each in variants:
            pins |= resolved(load_recipe(name, variant=each, budget=budget, pins=pins))
        path = lock_path(name)
        write_lock(path, {**read_lock(path), **pins})
    for key, revision in pins.items():
        typer.echo(f"{key}: {revision}")
    typer.echo(f"{len(pins)} names resolved: {path}")


@recipe_app.command("show")
def show(
    name: Name,
    variant: Variant = None,
    budget: Budget = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print the resolved recipe."""
    import yaml

    with clear_errors():
        tree = load_recipe(name, variant=variant, budget=budget, settings=settings or []).model_dump(mode="json")
    typer.echo(json.dumps(tree, indent=1) if as_json else yaml.safe_dump(tree, sort_keys=False, width=120))


@recipe_app.command("ls")
def list_recipes() -> None:
    """Names of the recipes that come with trlm."""
    typer.echo("\n".join(recipe_names()))


@recipe_app.command("schema")
def schema() -> None:
    """JSON schema of a recipe, for editors."""
    typer.echo(json.dumps(Recipe.model_json_schema(), indent=1))


@store_app.command("ls")
def list_store(store: StoreAddress = "runs", as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Finished artifacts of a store, a line each."""
    with clear_errors():
        manifests = _existing_store(store).manifests()
    for manifest in manifests:
        if as_json:
            typer.echo(json.dumps({"address": manifest.address, "fingerprint": manifest.fingerprint, "size": manifest.size}))
        else:
            typer.echo(
                f"{manifest.address:<70} {manifest.size / 2**20:>9.1f} MiB  {manifest.created:%Y-%m-%d %H:%M}  {manifest.counts_line}"
            )


@app.command()
def verify(
    address: Annotated[str, typer.Argument(help="Of an artifact, or of what lies below: checkpoints/trlm-135m-local.")] = "",
    store: StoreAddress = "runs",
) -> None:
    """Check every byte, field and count of finished artifacts; exit code 1 where something is wrong."""
    with clear_errors():
        opened = _existing_store(store)
        from trlm_core.verify import artifacts_below, objections

        addresses = artifacts_below(opened, address)
    wrong = 0
    for each in addresses:
        with clear_errors():
            reasons = objections(opened, each)
        wrong += bool(reasons)
        typer.echo(f"{'damaged' if reasons else 'whole  '}  {each}")
        for reason in reasons:
            typer.echo(f"         {reason}")
    typer.echo(f"{len(addresses) - wrong} of {len(addresses)} artifacts are whole")
    if wrong:
        raise typer.Exit(1)


@app.command()
def up(
    home: Home = Path("runs/services"),
    store: StoreAddress = "runs",
    database_url: Annotated[
        str | None, typer.Option(help="Of Prefect's server: postgresql+asyncpg://...; SQLite by default.", envvar="TRLM_DATABASE_URL")
    ] = None,
    prefect_port: Annotated[int, typer.Option(help="Of Prefect's server and page.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Of MLflow's server and page.")] = 5000,
    pool: Annotated[list[str] | None, typer.Option(help="Work pool to start a worker for; may be repeated. Both by default.")] = None,
) -> None:
    """Start Prefect's server, MLflow, the deployments and a worker for each work pool on this machine, on loopback."""
    from flows.services import POOLS, Machine, start

    with clear_errors():
        machine = Machine(home.resolve(), Store.open(store).address, prefect_port, mlflow_port, database_url)
        os.environ.update(machine.environment)  # before Prefect is imported
        start(machine, _deploy, tuple(pool or POOLS))
    typer.echo(f"Prefect      {machine.prefect_url}\nMLflow       {machine.mlflow_url}\nstore        {machine.store}")
    typer.echo(f"logs         {machine.home}/*.log")
    typer.echo("\nIn the shell that talks to them:\n")
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "TRLM_STORE"):
        typer.echo(f"    export {variable}={shlex.quote(machine.environment[variable])}")
    typer.echo(f"    {Path(sys.executable).with_name('prefect')} deployment run trlm/full-pipeline --watch\n\n`trlm down` ends them all.")


@app.command()
def down(home: Home = Path("runs/services")) -> None:
    """End what `trlm up` started; what it stored stays."""
    from flows.services import stop

    ended = stop(home.resolve())
    typer.echo(f"ended: {', '.join(ended)}" if ended else f"nothing of {home} runs")


@app.command()
def deploy() -> None:
    """Make work pools, deployments and automations on the server that PREFECT_API_URL names; twice is as once."""
    with clear_errors():
        _deploy()


def _deploy() -> None:
    from flows.deploy import deploy as made

    for line in made():
        typer.echo(line)


def _existing_store(address: str) -> Store:
    if not Store.exists(address):
        raise ValueError(f"store {address}: wanted a store, got nothing there; choose one with --store")
    return Store.open(address)


def _run_pipeline(recipe: Recipe, store: Store, choice: dict[str, Any], where: dict[str, Any]) -> None:
    set_up_environment()
    with run_server() as wait_for_server:
        from trlm_core.plan import check_machine, check_pipeline

        with store.held():
            check_pipeline(recipe)
            check_machine(recipe, store.root, where["execution"])
        from flows.parameters import RecipeChoice
        from flows.trlm_pipeline import local_pipeline
        from tasks.place import Where

        wait_for_server()
        local_pipeline(RecipeChoice.model_validate(choice), Where.model_validate(where))


def _resolved(choice: dict[str, Any], latest: bool) -> "RecipeChoice":
    from flows.parameters import RecipeChoice

    load_recipe(**choice)  # a wrong overlay is told with those there are
    return RecipeChoice(**choice, upstream="latest" if latest else "locked").resolved()


def _kept_blend(store: Store, recipe: Recipe, stage: str) -> Manifest | None:
    """The blend where it and its stage dataset are finished."""
    from trlm_core.lineage import Lineage, all_finished

    _check_stage(recipe, stage)
    lineage, chosen = Lineage(recipe), recipe.stage(stage)
    return next(iter(all_finished(store, lineage.blend(chosen), lineage.dataset(chosen))), None)


def _check_stage(recipe: Recipe, stage: str) -> None:
    if stage not in (names := [each.name for each in recipe.stages]):
        raise ValueError(f"stage: wanted one of {', '.join(names)}, got {stage!r}")


def _run_blend(store: Store, stage: str, choice: "RecipeChoice", where: dict[str, Any], publish: str | None, runner: str) -> None:
    set_up_environment()
    if runner == "ray":
        from tasks.runners import check_runner

        check_runner("ray", store)  # while PREFECT_API_URL is the user's
    with run_server() as wait_for_server:
        from flows.build_blend import build_blend
        from tasks.place import Where
        from tasks.runs import reading_at
        from trlm_core.data.publish import check_repository

        place = Where.model_validate(where)
        reading_at(choice.load(), place)  # its errors need no server
        if publish:
            check_repository(publish)  # nor do these
        wait_for_server()
        build_blend(stage, choice, place, publish, runner)  # pyright: ignore[reportArgumentType]


def _run_training(stage: str, choice: dict[str, Any], where: dict[str, Any], publish: dict[str, str] | None) -> str | None:
    """Address of the commit where it is published."""
    set_up_environment()
    with run_server() as wait_for_server:
        from flows.parameters import RecipeChoice
        from flows.train_stage import train as train_stage
        from tasks.place import Where
        from tasks.publishing import Publishing, check_publishing, found_checkpoint
        from tasks.runs import training_at
        from trlm_core.lineage import finished

        recipe, at = RecipeChoice.model_validate(choice), Where.model_validate(where)
        to = Publishing.model_validate(publish) if publish else None
        place = training_at(recipe.load(), at)  # its errors need no server, nor do the next
        chosen = place.recipe.stage(stage)
        for needed in (place.lineage.dataset(chosen), place.lineage.parent(chosen)):
            finished(place.store, needed)
        if to:
            check_publishing(place, chosen, to)
        wait_for_server()
        train_stage(stage, recipe, at, to)  # pyright: ignore[reportArgumentType]
        published = found_checkpoint(place, chosen, to.repo) if to else None
    return (published.url if published else f"{to.repo} (changed since)") if to else None


def _take_part(store: Store, recipe: Recipe, stage: str, execution: Execution) -> None:
    """As a further node: without Prefect and MLflow, which the first has."""
    set_up_environment()
    from trlm_core.lineage import Lineage, finished
    from trlm_core.plan import check_machine
    from trlm_core.training.node import Node

    check_machine(recipe, store.root, execution)
    lineage, chosen = Lineage(recipe), recipe.stage(stage)
    dataset, parent = (finished(store, needed) for needed in (lineage.dataset(chosen), lineage.parent(chosen)))
    Node(store, recipe, chosen, dataset, parent, execution, print_progress).take_part()
    typer.echo(f"node {execution.node_rank} is done; node 0 writes the checkpoint")


def _published(store: Store, blended: Manifest | None, repo: str, ran: bool) -> str:
    """Address of the commit. `ran`: the flow has published it just now, and this only finds where."""
    from trlm_core.data.publish import found, publish

    assert blended is not None
    publication = found(store, blended, repo) if ran else publish(store, blended, repo)
    if publication is None:
        return f"{repo} (changed since)"
    if not ran and not publication.is_new:
        typer.echo(f"Already there: {repo} is this blend at commit {publication.commit}")
    return publication.url


if __name__ == "__main__":
    app()
