"""Sources: one pinned family, corpus or Hub split, read down to its counts into an artifact of its own (train and held_out rows)."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.provenance import installed_version
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.generated.draw import draw_pairs, draw_problems
from trlm_core.data.generated.everyday import everyday_dialogs
from trlm_core.data.rows import CONVERSATION, PREFERENCE, Row, conversation, table, with_provenance
from trlm_core.data.shards import write_shards
from trlm_core.data.split import is_held_out, seed_of
from trlm_core.recipes.schema import DialogSource, GeneratedSource, HubSource, Recipe, Source, Stage
from trlm_core.text.templates import chat_template
from trlm_core.text.thoughts import with_thought
from trlm_core.text.tokenizer import conversation_ids, load_tokenizer, stage_tokenizer


class SourceError(ValueError):
    """A source cannot give what the recipe asks of it."""


@dataclass(frozen=True)
class Drawn:
    """What a source gave: rows of both sides, and why others were dropped."""

    train: list[Row]
    held_out: list[Row]
    dropped: Counter[str]


def check_sources(recipe: Recipe) -> None:
    """Raise SourceError where a pinned package is not the installed one, or the Hub is wanted but switched off."""
    for package, wanted in (("reasoning-gym", recipe.generator), ("chatterbot-corpus", recipe.dialogs)):
        if wanted is not None and (got := installed_version(package)) != wanted:
            raise SourceError(f"recipe {recipe.name}: wanted {package}=={wanted}, got {got or 'nothing'} installed; run `make setup`")
    hub = [source.name for stage in recipe.stages for source in stage.blend.sources if isinstance(source, HubSource)]
    if hub and os.environ.get("HF_HUB_OFFLINE", "") not in {"", "0"}:
        raise SourceError(f"recipe {recipe.name}: wanted the Hub for {len(hub)} sources, got HF_HUB_OFFLINE set; unset it")


def source_spec(recipe: Recipe, stage: Stage, source: Source, base: Fingerprinted) -> Spec:
    identity: dict[str, Any] = {"made_by": "sources/2", "source": source.model_dump(mode="json"), "seed": stage.blend.seed}
    if isinstance(source, DialogSource):
        identity["revision"] = recipe.dialogs
    if isinstance(source, GeneratedSource):
        identity |= {"revision": recipe.generator, "sizes": recipe.families[source.family]}
        identity |= {"faults": list(stage.blend.faults), "unseen_faults": list(stage.blend.unseen_faults)}
    if stage.blend.max_tokens is not None:
        identity |= {"max_tokens": stage.blend.max_tokens, "template": chat_template(stage.rendering)}
        identity |= {"added_tokens": list(recipe.added_tokens(stage))}
    return Spec(kind="datasets", group="sources", name=source.name, identity=identity, inputs={"tokenizer": base.fingerprint})


def read_source(store: Store, recipe: Recipe, stage: Stage, source: Source, base: Manifest) -> Manifest:
    """Read one source into the store. Raises SourceError where it is shorter than its counts."""
    schema = PREFERENCE if stage.training.trainer == "dpo" else CONVERSATION

    def build(folder: Path) -> dict[str, Any]:
        drawn = _draw(recipe, stage, source, _fits(store, recipe, stage, base))
        _require_counts(stage, source, drawn)
        write_shards(folder, "train", table(drawn.train, schema))
        write_shards(folder, "held_out", table(drawn.held_out, schema))
        reasons = {reason: count for reason, count in drawn.dropped.items() if reason != "drawn"}
        return {"train": len(drawn.train), "held_out": len(drawn.held_out), "dropped": reasons}

    return store.make(source_spec(recipe, stage, source, base), build)


def _draw(recipe: Recipe, stage: Stage, source: Source, fits: Callable[[Row], bool]) -> Drawn:
    if isinstance(source, HubSource):
        columns = ("chosen", "rejected") if stage.training.trainer == "dpo" else ("messages",)
        return Drawn(_all_placed(source, list(_hub_rows(source, columns))), [], Counter())
    if isinstance(source, DialogSource):
        return _drawn_dialogs(stage, source, fits)
    if source.form == "pair":
        return _drawn_pairs(recipe, stage, source, fits)
    return _drawn_problems(recipe, stage, source, fits)


def _drawn_problems(recipe: Recipe, stage: Stage, source: GeneratedSource, fits: Callable[[Row], bool]) -> Drawn:
    dropped: Counter[str] = Counter()

    def row(problem: Any) -> Row:
        thought = " ".join(problem.steps)
        reply = with_thought(thought, problem.answer) if source.form == "trace" else problem.answer
        return {"messages": conversation(problem.question, reply)}

    def take(count: int, held_out: bool) -> list[Row]:
        def accept(problem: Any) -> bool:
            return is_held_out(problem.question) == held_out and fits(row(problem))

        seed = seed_of(stage.blend.seed, f"{source.name}/{'held_out' if held_out else 'train'}")
        problems = draw_problems(source.family, recipe.families[source.family], seed, accept=accept, dropped=dropped)
        return [_placed(source, row(problem), index) for index, problem in enumerate(itertools.islice(problems, count))]

    return Drawn(take(source.num_examples, False), take(source.num_held_out, True), dropped)


def _drawn_pairs(recipe: Recipe, stage: Stage, source: GeneratedSource, fits: Callable[[Row], bool]) -> Drawn:
    dropped: Counter[str] = Counter()

    def row(problem: Any, faulty: Any) -> Row:
        chosen, rejected = (with_thought(" ".join(each.steps), each.answer) for each in (problem, faulty))
        return {
            "chosen": conversation(problem.question, chosen),
            "rejected": conversation(problem.question, rejected),
            "fault": faulty.fault,
        }

    def take(count: int, held_out: bool, faults: tuple[str, ...]) -> list[Row]:
        seed = seed_of(stage.blend.seed, f"{source.name}/{'held_out' if held_out else 'train'}/{','.join(faults)}")
        pairs = draw_pairs(
            source.family,
            recipe.families[source.family],
            seed,
            faults=frozenset(faults),
            accept=lambda problem: is_held_out(problem.question) == held_out,
            accept_pair=lambda problem, faulty: fits(row(problem, faulty)),
            dropped=dropped,
        )
        return [row(problem, faulty) for problem, faulty in itertools.islice(pairs, count)]

    train = take(source.num_examples, False, stage.blend.faults)
    held_out = [row for faults in _held_out_faults(stage) for row in take(source.num_held_out, True, faults)]
    return Drawn(_all_placed(source, train), _all_placed(source, held_out), dropped)


def _drawn_dialogs(stage: Stage, source: DialogSource, fits: Callable[[Row], bool]) -> Drawn:
    import random

    rows = [(question, {"messages": conversation(question, answer)}) for question, answer in everyday_dialogs()]
    random.Random(seed_of(stage.blend.seed, source.name)).shuffle(rows)
    fitting = [(question, row) for question, row in rows if fits(row)]
    train = [row for question, row in fitting if not is_held_out(question)][: source.num_examples]
    held_out = [row for question, row in fitting if is_held_out(question)][: source.num_held_out]
    return Drawn(_all_placed(source, train), _all_placed(source, held_out), Counter(not_fitting=len(rows) - len(fitting)))


def _hub_rows(source: HubSource, columns: tuple[str, ...]) -> Iterator[Row]:
    """The first rows of the split, streamed: what lies behind the cap is never downloaded."""
    import datasets

    stream = datasets.load_dataset(source.repo, source.subset, split=source.split, revision=source.revision, streaming=True)
    for row in itertools.islice(stream, source.num_examples):
        wanted = {*source.drop, *source.rename}
        if absent := sorted(wanted - row.keys()):
            raise SourceError(f"{source.name}: wanted the columns {', '.join(absent)} to drop or rename, the split has {', '.join(row)}")
        kept = {source.rename.get(key, key): value for key, value in row.items() if key not in source.drop}
        if absent := [key for key in columns if key not in kept]:
            raise SourceError(f"{source.name}: wanted {', '.join(columns)}, the split lacks {', '.join(absent)}; it has {', '.join(row)}")
        yield {key: kept[key] for key in (*columns, "source") if key in kept}


def _placed(source: Source, row: Row, index: int) -> Row:
    if isinstance(source, GeneratedSource):
        place = {"dataset": "reasoning-gym", "subset": source.family, "split": source.form}
    elif isinstance(source, DialogSource):
        place = {"dataset": "chatterbot-corpus", "subset": "english", "split": "train"}
    else:
        place = {"dataset": source.repo, "subset": source.subset, "split": source.split}
    return with_provenance(row, source=source.name, index=index, **place)


def _all_placed(source: Source, rows: list[Row]) -> list[Row]:
    return [_placed(source, row, index) for index, row in enumerate(rows)]


def _fits(store: Store, recipe: Recipe, stage: Stage, base: Manifest) -> Callable[[Row], bool]:
    if stage.blend.max_tokens is None:
        return lambda row: True
    limit = stage.blend.max_tokens
    tokenizer = stage_tokenizer(load_tokenizer(store.folder(base)), recipe.added_tokens(stage), stage.rendering)

    def fits(row: Row) -> bool:
        """Within the limit; both replies of a pair alike in length, so that length tells nothing."""
        lengths = [len(conversation_ids(tokenizer, row[side])) for side in ("messages", "chosen", "rejected") if side in row]
        return max(lengths) <= limit and min(lengths) == max(lengths)

    return fits


def _held_out_faults(stage: Stage) -> list[tuple[str, ...]]:
    """Held-out pairs are drawn once with the kinds of fault that are trained on, and once with those that are not."""
    return [faults for faults in (stage.blend.faults, stage.blend.unseen_faults) if faults]


def _require_counts(stage: Stage, source: Source, drawn: Drawn) -> None:
    pairs = isinstance(source, GeneratedSource) and source.form == "pair"
    held_out = source.num_held_out * (len(_held_out_faults(stage)) if pairs else 1)
    for side, wanted, got in (("examples", source.num_examples, len(drawn.train)), ("held-out examples", held_out, len(drawn.held_out))):
        if got < wanted:
            raise SourceError(
                f"{source.name}: wanted {wanted:,} {side}, the source has {got:,} (dropped: {dict(drawn.dropped)}); "
                "lower the count or widen the family's sizes"
            )
