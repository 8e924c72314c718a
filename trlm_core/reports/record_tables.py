"""Tables of what was built, from recipe and manifests: composition and checks of a blend, settings, environment, artifacts."""

from collections.abc import Iterator, Mapping
from typing import Any

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.provenance import machine
from trlm_core.artifacts.store import Store
from trlm_core.data.blend import read_checks
from trlm_core.data.checks import Check
from trlm_core.recipes.schema import Recipe, Source, Stage
from trlm_core.reports.compare import STAGE_LABELS, subject_label
from trlm_core.reports.results import RunResults, StageResult
from trlm_core.reports.table import ABSENT, Cell, Table, code, number, verdict

UNITS = ("B", "KiB", "MiB", "GiB")


def artifacts(results: RunResults) -> dict[str, Manifest]:
    """Role -> manifest of everything that the report is made from."""
    roles = ("blend", "dataset", "start", "checkpoint", "held_out")
    stages = {f"{each.stage.name}/{role}": getattr(each, role) for each in results.stages for role in roles}
    replies = {f"replies/{subject}": manifest for subject, manifest in results.replies.items()}
    return {"base": results.base, "questions": results.questions, **stages, **replies}


def blend_tables(store: Store, each: StageResult) -> list[Table]:
    checks = read_checks(store.folder(each.blend))
    return [_composition(each, checks), _checks(each, checks)]


def settings_tables(recipe: Recipe) -> list[Table]:
    return [
        _stage_settings(recipe),
        leaf_table("The base and the packages that the problems come from.", _base_leaves(recipe)),
        *([leaf_table("The evaluation.", recipe.evaluation.model_dump(mode="json"))] if recipe.evaluation else []),
        *([_sizes(recipe)] if recipe.families else []),
    ]


def environment_tables(results: RunResults) -> list[Table]:
    """The machine is the one that wrote the report; commits and versions are those recorded with the artifacts."""
    manifests = artifacts(results).values()
    names = sorted({name for manifest in manifests for name in manifest.packages})
    versions = {name: sorted({each.packages[name] for each in manifests if name in each.packages}) for name in names}
    commits = sorted({manifest.git_commit or "outside a checkout" for manifest in manifests})
    return [
        leaf_table("The machine that wrote this report.", machine()),
        leaf_table("Commit and package versions that the artifacts were made with.", {"git commit": commits, **versions}),
    ]


def artifact_table(results: RunResults) -> Table:
    seen: dict[str, Cell] = {}
    for role, manifest in artifacts(results).items():
        seen.setdefault(manifest.address, Cell(_role_words(role)))
    by_address = {manifest.address: manifest for manifest in artifacts(results).values()}
    rows = tuple((label, *artifact_cells(by_address[address])) for address, label in seen.items())
    return Table(
        "Addresses are below the store; a fingerprint is the sha256 of what the artifact was made from.",
        ("artifact", "address", "fingerprint", "size", "build, s"),
        rows,
    )


def _role_words(role: str) -> str:
    first, _, second = role.partition("/")
    if first == "replies":
        return f"replies of {subject_label(second)}"
    return f"{STAGE_LABELS[first]} {second.replace('held_out', 'held-out scores')}" if second else first


def artifact_cells(manifest: Manifest) -> tuple[Cell, ...]:
    fingerprint = Cell(manifest.fingerprint[:12], kind="code", whole=manifest.fingerprint)
    return (code(manifest.address), fingerprint, number(byte_words(manifest.size)), number(f"{manifest.seconds:,.1f}"))


def byte_words(size: int) -> str:
    """538090408 -> `513.2 MiB`."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:,.1f} {UNITS[unit]}" if unit else f"{size} B"


def _composition(each: StageResult, checks: list[Check]) -> Table:
    counts = each.blend.counts["sources"]
    passed = {check.name: check.passed for check in checks}
    required = [check for check in checks if check.wanted is not None]
    total = sum(count["train"] for count in counts.values())
    rows = tuple(_composition_row(source, counts[source.name], total, passed) for source in each.stage.blend.sources)
    caption = (
        f"Blend of {STAGE_LABELS[each.stage.name]}: {each.blend.counts['rows']:,} rows; "
        f"{sum(check.passed for check in required)} of {len(required)} checks passed."
    )
    return Table(caption, ("source", "requested", "kept", "held out", "share, %", "dropped", "count check"), rows)


def _composition_row(source: Source, count: Mapping[str, Any], total: int, passed: Mapping[str, bool]) -> tuple[Cell, ...]:
    dropped = ", ".join(f"{reason} {many:,}" for reason, many in sorted(count["dropped"].items()))
    return (
        Cell(source.name),
        number(f"{source.num_examples:,}"),
        number(f"{count['train']:,}"),
        number(f"{count['held_out']:,}"),
        number(f"{100 * count['train'] / max(total, 1):.1f}"),
        Cell(dropped or "none"),
        verdict(passed.get(f"rows of {source.name}", False), "passed", "failed"),
    )


def _checks(each: StageResult, checks: list[Check]) -> Table:
    rows = tuple((Cell(check.name), number(check.wanted or ""), number(check.got), _check_verdict(check)) for check in checks)
    label = STAGE_LABELS[each.stage.name]
    return Table(f"Checks over the finished shards of {label}.", ("check", "wanted", "got", ""), rows, folded=f"All checks of {label}")


def _check_verdict(check: Check) -> Cell:
    return Cell(check.verdict) if check.wanted is None else verdict(check.passed, "passed", "failed")


def _stage_settings(recipe: Recipe) -> Table:
    """A row a setting, a column a stage."""
    leaves = [dict(_leaves(_stage_tree(stage))) for stage in recipe.stages]
    rows = tuple(
        (code(key), *(Cell(_shown(each[key])) if key in each else Cell(ABSENT) for each in leaves)) for key in _setting_names(leaves)
    )
    return Table("The recipe's stages.", ("setting", *(STAGE_LABELS[stage.name] for stage in recipe.stages)), rows)


def _setting_names(leaves: list[dict[str, Any]]) -> list[str]:
    """Names in the order of the recipe's parts; a part that one stage leaves null and another fills is named by its fields."""
    names = list(dict.fromkeys(name for each in leaves for name in each))
    parts = list(dict.fromkeys(name.split(".")[0] for name in names))
    leaf_names = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    return sorted(leaf_names, key=lambda name: parts.index(name.split(".")[0]))


def _stage_tree(stage: Stage) -> dict[str, Any]:
    tree = stage.model_dump(mode="json", exclude={"blend": {"sources"}})
    return {key: value for key, value in tree.items() if key != "name"}


def _base_leaves(recipe: Recipe) -> dict[str, Any]:
    return {"base": recipe.base.model_dump(mode="json"), "reasoning-gym": recipe.generator, "chatterbot-corpus": recipe.dialogs}


def _sizes(recipe: Recipe) -> Table:
    rows = tuple(
        (code(family), Cell(", ".join(f"{key} {_shown(value)}" for key, value in sizes.items())))
        for family, sizes in recipe.families.items()
    )
    return Table("Sizes of the problems, in reasoning-gym's words.", ("family", "sizes"), rows, folded="Sizes of every family")


def leaf_table(caption: str, tree: Mapping[str, Any]) -> Table:
    return Table(caption, ("setting", "value"), tuple((code(key), Cell(_shown(value))) for key, value in _leaves(tree)))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
