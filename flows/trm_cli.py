"""The commands of the TRM track: `trlm trm run`, `trlm trm report`, `trlm trm show`, `trlm chat`."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.commands import AsJson, Device, Name, Settings, StoreAddress, TrackingAddress, clear_errors, set_up_environment
from flows.run_server import run_server
from trlm_core.artifacts.store import Store
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.trm_load import load_trm_recipe

if TYPE_CHECKING:
    from trlm_core.artifacts.manifest import Manifest

trm_app = typer.Typer(no_args_is_help=True, help="A thinker on a language model's hidden states.")
Ablations = Annotated[
    list[str] | None,
    typer.Option("--ablation", metavar="KEY=VALUE", help="A run with this key changed, finished on this store: a row; may be repeated."),
]


@trm_app.command("run")
def run(
    name: Name,
    settings: Settings = None,
    store: StoreAddress = "runs",
    tracking_uri: TrackingAddress = None,
    device: Device = "auto",
    save_steps: Annotated[int | None, typer.Option(help="Steps from one save of a phase to the next; by default by time alone.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a TRM recipe from its thoughts to its report; what is finished is reused, what was interrupted goes on."""
    with clear_errors():
        from trlm_core.trm_plan import check_trm

        recipe = load_trm_recipe(name, settings=settings or [])
        execution = Execution.model_validate({"device": device, "save_steps": save_steps})
        opened = Store.open(store)
        check_trm(recipe, opened)
        _run_flow({"name": name, "settings": tuple(settings or ())}, opened, tracking_uri, execution)
        from trlm_core.lineage import finished
        from trlm_core.reports.trm_page import trm_report_spec
        from trlm_core.trm_lineage import TRMLineage

        results = TRMLineage(recipe).results(opened)
        page = finished(opened, trm_report_spec(results))
    _print_end(opened, dict(results.made), page, as_json)


@trm_app.command("report")
def report(
    name: Name, settings: Settings = None, store: StoreAddress = "runs", ablations: Ablations = None, as_json: AsJson = False
) -> None:
    """Write the report of a finished run, with rows for runs of the same recipe that differ by a key."""
    with clear_errors():
        from trlm_core.trm_plan import check_installed

        check_installed()
        from trlm_core.reports.trm_page import write_trm_report
        from trlm_core.trm_lineage import TRMLineage

        opened = Store.open(store)
        lineage = TRMLineage(load_trm_recipe(name, settings=settings or []))
        others = {each: TRMLineage(load_trm_recipe(name, settings=[*(settings or []), each])) for each in ablations or []}
        results = lineage.results(opened, others)
        page = write_trm_report(opened, results)
    _print_end(opened, dict(results.made), page, as_json)


@trm_app.command("show")
def show(name: Name, settings: Settings = None) -> None:
    """Print the resolved recipe."""
    import yaml

    with clear_errors():
        tree = load_trm_recipe(name, settings=settings or []).model_dump(mode="json")
    typer.echo(yaml.safe_dump(tree, sort_keys=False, width=120))


def chat(
    checkpoint: Annotated[
        str, typer.Argument(help="Folder of a checkpoint, or its address in the store: checkpoints/trm-acceptance/phase2.")
    ],
    thinking: Annotated[Literal["latent", "text", "off"], typer.Option(help="In latents, in text, or not at all.")] = "text",
    prompt: Annotated[str | None, typer.Option(help="Answer this and end, instead of reading prompts from the terminal.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Supervision steps of a latent thought; the checkpoint's own by default.")
    ] = None,
    halting: Annotated[bool | None, typer.Option(help="Let its own head say when a latent thought is done.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer, with its thought where that is text.")] = 256,
    device: Device = "cpu",
    store: StoreAddress = "runs",
) -> None:
    """Talk to a checkpoint, and see what it thinks."""
    with clear_errors():
        from trlm_core.trm_plan import check_installed

        set_up_environment()
        from trlm_core.trm.chat_checkpoint import ChatSettings, chat_folder, is_latent, open_chat

        folder = chat_folder(checkpoint, store)
        if is_latent(folder):
            check_installed()
        partner = open_chat(folder, ChatSettings(thinking, steps, halting, max_new_tokens, device))
        if prompt is not None:
            return _print_reply(partner, prompt)
        for line in typer.get_text_stream("stdin"):
            if line.strip():
                _print_reply(partner, line.rstrip("\n"))
    return None


def _print_reply(partner: Any, prompt: str) -> None:
    for line in partner.reply(prompt):
        typer.echo(line)


def _run_flow(choice: dict[str, Any], store: Store, tracking_uri: str | None, execution: Execution) -> None:
    set_up_environment()
    with run_server() as wait_for_server:
        from flows.trm_research import TRMChoice, trm
        from tasks.place import Where

        wait_for_server()
        trm(TRMChoice.model_validate(choice), Where(store=store.address, tracking_uri=tracking_uri, execution=execution))


def _print_end(store: Store, made: dict[str, "Manifest"], page: "Manifest", as_json: bool) -> None:
    report_page = store.folder(page) / "report.html"
    typer.echo(f"\nreport       {report_page}")
    for role, manifest in made.items():
        if manifest.kind == "checkpoints":
            typer.echo(f"checkpoint   {role}: {store.location(manifest)}")
    typer.echo(f"gates        {page.counts['gates_held']} of {page.counts['gates']} claims hold")
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "store": store.address,
                    "report": str(report_page),
                    "fingerprints": {role: manifest.fingerprint for role, manifest in made.items()} | {"report": page.fingerprint},
                    "exact": made["evaluation"].counts["exact"],
                }
            )
        )
