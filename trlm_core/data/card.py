"""The dataset card of a blend: a README.md that the Hub reads and a person can check."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from trlm_core.data.checks import Check
from trlm_core.recipes.schema import Recipe, Source, Stage

LICENSES = {"generated": "apache-2.0", "dialogs": "bsd-3-clause", "hub": "see the source"}


def dataset_card(
    recipe: Recipe, stage: Stage, counts: Mapping[str, Mapping[str, Any]], checks: Sequence[Check], files: Mapping[str, str]
) -> str:
    """counts: source name -> {"train": n, "held_out": n, "dropped": {reason: n}}; files: split -> pattern, of those with rows."""
    return "\n\n".join(
        [
            f"---\n{yaml.safe_dump(_metadata(recipe, stage, files), sort_keys=False).strip()}\n---",
            f"# {recipe.name} / {stage.name}",
            f"Blend of the recipe `{recipe.name}` (variant `{recipe.variant}`), seed {stage.blend.seed}.",
            "## Composition",
            _table(["source", "revision", "wanted", "kept", "held out", "share", "dropped"], _composition(recipe, stage, counts)),
            "## Checks (DuckDB, over the finished shards)",
            _table(["check", "wanted", "got", ""], [[c.name, c.wanted or "", c.got, c.verdict] for c in checks]),
            "## Build it again, load it",
            f"    trlm run {recipe.name}\n    datasets.load_dataset('path/to/this/folder')",
            "## Columns",
            "Provenance of every row: `_source_dataset`, `_source_subset`, `_source_split`, `_source_row`. "
            "`held_out` has only questions that no training row uses: a question's own hash decides its side.",
            "",
        ]
    )


def _metadata(recipe: Recipe, stage: Stage, files: Mapping[str, str]) -> dict[str, Any]:
    licenses = sorted({LICENSES[source.kind] for source in stage.blend.sources})
    return {
        "pretty_name": f"{recipe.name} {stage.name}",
        "license": licenses[0] if len(licenses) == 1 and "see" not in licenses[0] else "other",
        "language": ["en"],
        "task_categories": ["text-generation"],
        "tags": ["trlm", "reasoning", stage.name],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": path} for split, path in files.items()],
            }
        ],
    }


def _composition(recipe: Recipe, stage: Stage, counts: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    total = sum(count["train"] for count in counts.values())
    return [_composition_row(recipe, source, counts[source.name], total) for source in stage.blend.sources]


def _composition_row(recipe: Recipe, source: Source, count: Mapping[str, Any], total: int) -> list[str]:
    revision = {"generated": recipe.generator, "dialogs": recipe.dialogs}.get(source.kind) or getattr(source, "revision", "")
    dropped = ", ".join(f"{reason} {number:,}" for reason, number in sorted(count["dropped"].items()))
    share = f"{count['train'] / total:.1%}"
    return [
        source.name,
        str(revision),
        f"{source.num_examples:,}",
        f"{count['train']:,}",
        f"{count['held_out']:,}",
        share,
        dropped or "none",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
