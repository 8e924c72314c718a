"""Sources: one pinned family, corpus, Hub split or set of files, read down to its counts into an artifact of its own."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.provenance import installed_version
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.benchmarks import grams_of
from trlm_core.data.duplicates import Seen
from trlm_core.data.errors import SourceError
from trlm_core.data.filters import Judged, row_filter
from trlm_core.data.memory import use_tight_pool
from trlm_core.data.revisions import check_pinned
from trlm_core.data.rows import Row, schema_of
from trlm_core.data.split import seed_of
from trlm_core.data.taken import Judge, check_supply, spares_of, take
from trlm_core.recipes.schema import DialogSource, FileSource, GeneratedSource, HubSource, Recipe, Source, Stage, TakenSource
from trlm_core.text.templates import chat_template
from trlm_core.text.token_counts import token_counter
from trlm_core.text.tokenizer_files import tokenizer_folder


def check_sources(recipe: Recipe) -> None:
    """Raise SourceError where a pinned package is not the installed one, a revision is a name, or the Hub is wanted but switched off."""
    for package, wanted in (("reasoning-gym", recipe.generator), ("chatterbot-corpus", recipe.dialogs)):
        if wanted is not None and (got := installed_version(package)) != wanted:
            raise SourceError(f"recipe {recipe.name}: wanted {package}=={wanted}, got {got or 'nothing'} installed; run `make setup`")
    hub = [source for source in _taken(recipe) if isinstance(source, HubSource) and not Path(source.repo).is_dir()]
    if hub and os.environ.get("HF_HUB_OFFLINE", "") not in {"", "0"}:
        raise SourceError(f"recipe {recipe.name}: wanted the Hub for {len(hub)} sources, got HF_HUB_OFFLINE set; unset it")
    check_pinned(recipe)


def source_spec(recipe: Recipe, stage: Stage, source: Source, base: Fingerprinted) -> Spec:
    if isinstance(source, TakenSource):
        return _taken_spec(stage, source, base)
    identity: dict[str, Any] = {"made_by": "sources/3", "source": source.model_dump(mode="json"), "seed": stage.blend.seed}
    if isinstance(source, DialogSource):
        identity["revision"] = recipe.dialogs
    if isinstance(source, GeneratedSource):
        identity |= {"revision": recipe.generator, "sizes": recipe.families[source.family]}
        identity |= {"faults": list(stage.blend.faults), "unseen_faults": list(stage.blend.unseen_faults)}
    if stage.blend.max_tokens is not None:
        identity |= {"max_tokens": stage.blend.max_tokens, "template": chat_template(stage.rendering)}
        identity |= {"added_tokens": list(recipe.added_tokens(stage))}
    return Spec(kind="datasets", group="sources", name=source.name, identity=identity, inputs={"tokenizer": base.fingerprint})


def check_inputs(store: Store, stage: Stage) -> None:
    """Before any row is read: whether the sources have their counts, and the benchmarks' questions. Raises SourceError."""
    check_supply(stage)
    filters = stage.blend.filters
    if filters is not None and filters.contamination is not None:
        grams_of(store, filters.contamination)


def read_source(store: Store, recipe: Recipe, stage: Stage, source: Source, base: Manifest) -> Manifest:
    """Read one source into the store. Raises SourceError where it is shorter than its counts."""
    use_tight_pool()

    def build(folder: Path) -> dict[str, Any]:
        if isinstance(source, TakenSource):
            judge, spares = _judge(store, stage, base), _spares(stage, source)
            return take(source, schema_of(stage), folder, seed=_sampling_seed(stage, source), spares=spares, judge=judge)
        from trlm_core.data.drawn import draw  # reasoning-gym: seconds that a taken source need not cost

        return draw(store, recipe, stage, source, base, folder)

    return store.make(source_spec(recipe, stage, source, base), build)


def _taken(recipe: Recipe) -> list[TakenSource]:
    return [source for stage in recipe.stages for source in stage.blend.sources if isinstance(source, TakenSource)]


def _taken_spec(stage: Stage, source: HubSource | FileSource, base: Fingerprinted) -> Spec:
    """Only what changes the rows that are taken: the seed of another sampling than head, the filters that are on."""
    identity: dict[str, Any] = {"made_by": "taken/3", "source": source.model_dump(mode="json", exclude={"reported_share", "answers_by"})}
    identity |= {"columns": schema_of(stage).names}
    inputs: dict[str, str] = {}
    if source.sampling != "head":
        identity["seed"] = _sampling_seed(stage, source)
    if stage.blend.filters is not None:
        identity["filters"] = stage.blend.filters.model_dump(mode="json")
        if stage.blend.filters.max_tokens is not None:
            inputs["tokenizer"] = base.fingerprint
    return Spec(kind="datasets", group="sources", name=source.name, identity=identity, inputs=inputs)


def _sampling_seed(stage: Stage, source: HubSource | FileSource) -> int:
    return seed_of(stage.blend.seed, f"{source.name}/sampling")


def _spares(stage: Stage, source: HubSource | FileSource) -> int:
    """Rows that may replace duplicates of other sources."""
    filters = stage.blend.filters
    needed = filters is not None and (filters.exact_duplicates or filters.near_duplicates) and len(stage.blend.sources) > 1
    return spares_of(source.num_examples, filters.spares) if filters and needed else 0


def _judge(store: Store, stage: Stage, base: Manifest) -> Judge | None:
    """The stage's filters and, with them, the source's own duplicates."""
    filters = stage.blend.filters
    if filters is None:
        return None
    tokens = token_counter(tokenizer_folder(store, base)) if filters.max_tokens is not None else None
    grams = grams_of(store, filters.contamination) if filters.contamination is not None else None
    judged, seen = row_filter(filters, tokens, grams), Seen(filters)

    def judge(rows: Sequence[Row]) -> list[Judged]:
        verdicts = zip(rows, judged(rows), strict=True)
        return [each if each.reason is not None else replace(each, reason=seen.reason(row)) for row, each in verdicts]

    return judge
