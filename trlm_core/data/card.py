"""The dataset card of a blend: a README.md that the Hub reads and a person can check."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from trlm_core.data.checks import Check
from trlm_core.data.taken import Origin
from trlm_core.recipes.load import overlay_names
from trlm_core.recipes.schema import Filters, Recipe, Source, Stage, TakenSource

MADE_UNDER = {"generated": "apache-2.0", "dialogs": "bsd-3-clause"}  # licences of reasoning-gym and chatterbot-corpus
UNKNOWN = "unknown"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))  # the Hub's categories


@dataclass(frozen=True)
class Made:
    """What a blend became."""

    fingerprint: str
    counts: Mapping[str, Mapping[str, Any]]  # source -> {"train": n, "held_out": n, "dropped": {reason: n}}
    origins: Mapping[str, Origin | None]  # None: made here
    checks: Sequence[Check]
    files: Mapping[str, str]  # split -> pattern, of those with rows

    @property
    def rows(self) -> int:
        return sum(count["train"] for count in self.counts.values())


def dataset_card(recipe: Recipe, stage: Stage, made: Made) -> str:
    return "\n\n".join(
        [
            f"---\n{yaml.safe_dump(_metadata(recipe, stage, made), sort_keys=False).strip()}\n---",
            f"# {recipe.name} / {stage.name}",
            f"Blend of the recipe `{recipe.name}` (variant `{recipe.variant}`), seed {stage.blend.seed}, fingerprint `{made.fingerprint}`.",
            "## Composition",
            _table(
                ["source", "revision", "wanted", "kept", "held out", "share", "dropped", "licence", "answers by"],
                _composition(recipe, stage, made),
            ),
            f"Filters: {_filters(stage.blend.filters)}",
            "Licences are those that the sources' own cards name. Answers that a model wrote may be bound by that model's licence too: it "
            "stands beside the model, as the recipe has it.",
            "## Checks (DuckDB, over the finished shards)",
            _table(["check", "wanted", "got", "verdict"], [[*check.row.values()] for check in made.checks]),
            "## Build it again, load it",
            f"    trlm blend {recipe.name} {stage.name}{_variant(recipe)}\n    datasets.load_dataset('path/to/this/folder')",
            "## Columns",
            "Provenance of every row: `_source_dataset`, `_source_subset`, `_source_split`, `_source_row`. "
            "`held_out`, where there is one, has only questions that no training row uses: a question's own hash decides its side.",
            "",
        ]
    )


def _metadata(recipe: Recipe, stage: Stage, made: Made) -> dict[str, Any]:
    licenses = sorted({_license(source, made) for source in stage.blend.sources})
    languages = {language for origin in made.origins.values() for language in (origin.languages if origin else ("en",))}
    return {
        "pretty_name": f"{recipe.name} {stage.name}",
        "license": licenses[0] if len(licenses) == 1 and licenses[0] != UNKNOWN and "," not in licenses[0] else "other",
        "language": sorted(languages),
        "task_categories": ["text-generation"],
        "size_categories": [next((name for limit, name in SIZES if made.rows < limit), "1M<n<10M")],
        "tags": ["trlm", "reasoning", stage.name],
        "configs": [{"config_name": "default", "data_files": [{"split": split, "path": path} for split, path in made.files.items()]}],
    }


def _composition(recipe: Recipe, stage: Stage, made: Made) -> list[list[str]]:
    return [_composition_row(recipe, source, made) for source in stage.blend.sources]


def _composition_row(recipe: Recipe, source: Source, made: Made) -> list[str]:
    count = made.counts[source.name]
    revision = {"generated": recipe.generator, "dialogs": recipe.dialogs}.get(source.kind) or getattr(source, "revision", "")
    dropped = ", ".join(f"{reason} {number:,}" for reason, number in sorted(count["dropped"].items()))
    return [
        source.name,
        str(revision),
        f"{source.num_examples:,}",
        f"{count['train']:,}",
        f"{count['held_out']:,}",
        f"{count['train'] / made.rows:.1%}",
        dropped or "none",
        _license(source, made),
        getattr(source, "answers_by", None) or ("see its card" if isinstance(source, TakenSource) else "no model"),
    ]


def _license(source: Source, made: Made) -> str:
    origin = made.origins.get(source.name)
    return MADE_UNDER[source.kind] if origin is None else origin.license or UNKNOWN


def _filters(filters: Filters | None) -> str:
    """In words; what was dropped by each stands in the table."""
    if filters is None:
        return "none; rows without turns, with a null or with an unknown role are dropped."
    on = {
        "turns alternate and none is empty": filters.turns,
        f"thoughts in replies: {filters.thoughts}": filters.thoughts is not None,
        f"at most {filters.max_tokens} tokens": filters.max_tokens is not None,
        "no row twice": filters.exact_duplicates,
        "no near duplicates (MinHash)": filters.near_duplicates is not None,
        "no question of an evaluation benchmark": filters.contamination is not None,
    }
    return "; ".join(words for words, is_on in on.items() if is_on) + "."


def _variant(recipe: Recipe) -> str:
    return f" --variant {recipe.variant}" if overlay_names(recipe.name, "variants") else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
