"""A blend in the UI, as table artifacts: its composition, a row a source; what changed against the version before; its checks."""

from prefect.artifacts import create_table_artifact

from tasks.place import Place
from trlm_core.artifacts.manifest import Manifest
from trlm_core.data.blend import read_checks
from trlm_core.data.drift import drift, previous


def show_drift(place: Place, blend: Manifest) -> None:
    """What changed against the version before, where there is one."""
    before = previous(place.store, blend)
    if before is not None:
        table = drift(place.store, before, blend)
        words = f"{before.address} -> {blend.version}: {len(table)} facts differ"
        create_table_artifact(key=f"drift-{blend.name.replace('_', '-')}", table=table, description=words)


def show_composition(blend: Manifest) -> None:
    rows = blend.counts["rows"]
    table = [
        {
            "source": name,
            "rows": count["train"],
            "share": f"{count['train'] / rows:.1%}",
            "held out": count["held_out"],
            "dropped": ", ".join(f"{reason} {number:,}" for reason, number in count["dropped"].items()) or "none",
        }
        for name, count in blend.counts["sources"].items()
    ]
    words = f"{rows:,} rows, {blend.counts['checks_passed']} checks passed: {blend.address}"
    create_table_artifact(key=f"composition-{blend.name.replace('_', '-')}", table=table, description=words)


def show_checks(place: Place, blend: Manifest) -> None:
    table = [check.row for check in read_checks(place.folder(blend))]
    create_table_artifact(key=f"checks-{blend.name.replace('_', '-')}", table=table, description=f"DuckDB checks of {blend.address}")
