"""Drawing a source that is made here: problems of one family, pairs of them, or everyday dialogs; a question belongs to one side."""

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.data.errors import SourceError
from trlm_core.data.generated.draw import draw_pairs, draw_problems
from trlm_core.data.generated.everyday import everyday_dialogs
from trlm_core.data.rows import Row, conversation, schema_of, table, with_provenance
from trlm_core.data.shards import write_shards
from trlm_core.data.split import is_held_out, seed_of
from trlm_core.recipes.schema import DialogSource, GeneratedSource, Recipe, Stage
from trlm_core.text.thoughts import with_thought
from trlm_core.text.tokenizer import conversation_ids, load_tokenizer, stage_tokenizer
from trlm_core.text.tokenizer_files import tokenizer_folder


@dataclass(frozen=True)
class Drawn:
    """What a source gave: rows of both sides, and why others were dropped."""

    train: list[Row]
    held_out: list[Row]
    dropped: Counter[str]


def draw(
    store: Store, recipe: Recipe, stage: Stage, source: GeneratedSource | DialogSource, base: Manifest, folder: Path
) -> dict[str, Any]:
    """Fill the folder; counts. Raises SourceError where the family is shorter than its counts."""
    drawn = _draw(recipe, stage, source, _fits(store, recipe, stage, base))
    _require_counts(stage, source, drawn)
    for split, rows in (("train", drawn.train), ("held_out", drawn.held_out)):
        write_shards(folder, split, table(rows, schema_of(stage)), "arrow")
    reasons = {reason: count for reason, count in drawn.dropped.items() if reason != "drawn"}
    return {"train": len(drawn.train), "held_out": len(drawn.held_out), "dropped": reasons}


def _draw(recipe: Recipe, stage: Stage, source: GeneratedSource | DialogSource, fits: Callable[[Row], bool]) -> Drawn:
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
    rows = [(question, {"messages": conversation(question, answer)}) for question, answer in everyday_dialogs()]
    random.Random(seed_of(stage.blend.seed, source.name)).shuffle(rows)
    fitting = [(question, row) for question, row in rows if fits(row)]
    train = [row for question, row in fitting if not is_held_out(question)][: source.num_examples]
    held_out = [row for question, row in fitting if is_held_out(question)][: source.num_held_out]
    return Drawn(_all_placed(source, train), _all_placed(source, held_out), Counter(not_fitting=len(rows) - len(fitting)))


def _placed(source: GeneratedSource | DialogSource, row: Row, index: int) -> Row:
    if isinstance(source, GeneratedSource):
        place = {"dataset": "reasoning-gym", "subset": source.family, "split": source.form}
    else:
        place = {"dataset": "chatterbot-corpus", "subset": "english", "split": "train"}
    return with_provenance(row, source=source.name, index=index, **place)


def _all_placed(source: GeneratedSource | DialogSource, rows: list[Row]) -> list[Row]:
    return [_placed(source, row, index) for index, row in enumerate(rows)]


def _fits(store: Store, recipe: Recipe, stage: Stage, base: Manifest) -> Callable[[Row], bool]:
    if stage.blend.max_tokens is None:
        return lambda row: True
    limit = stage.blend.max_tokens
    tokenizer = stage_tokenizer(load_tokenizer(tokenizer_folder(store, base)), recipe.added_tokens(stage), stage.rendering)

    def fits(row: Row) -> bool:
        """Within the limit; both replies of a pair alike in length, so that length tells nothing."""
        lengths = [len(conversation_ids(tokenizer, row[side])) for side in ("messages", "chosen", "rejected") if side in row]
        return max(lengths) <= limit and min(lengths) == max(lengths)

    return fits


def _held_out_faults(stage: Stage) -> list[tuple[str, ...]]:
    """Held-out pairs are drawn once with the kinds of fault that are trained on, and once with those that are not."""
    return [faults for faults in (stage.blend.faults, stage.blend.unseen_faults) if faults]


def _require_counts(stage: Stage, source: GeneratedSource | DialogSource, drawn: Drawn) -> None:
    pairs = isinstance(source, GeneratedSource) and source.form == "pair"
    held_out = source.num_held_out * (len(_held_out_faults(stage)) if pairs else 1)
    for side, wanted, got in (("examples", source.num_examples, len(drawn.train)), ("held-out examples", held_out, len(drawn.held_out))):
        if got < wanted:
            raise SourceError(
                f"{source.name}: wanted {wanted:,} {side}, the source has {got:,} (dropped: {dict(drawn.dropped)}); "
                "lower the count or widen the family's sizes"
            )
