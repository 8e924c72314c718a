"""A blend's composition in the UI: a table artifact, a row a source."""

from prefect.artifacts import create_table_artifact

from trlm_core.artifacts.manifest import Manifest


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
