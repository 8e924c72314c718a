"""Problems that passed the gate, drawn from reasoning-gym in the order of a seed: Problem("chain_sum", "What is ...")."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import reasoning_gym
from reasoning_gym.algorithmic.word_sorting import TextTransformation

from trlm_core.data.generated.families import FAMILIES
from trlm_core.data.generated.family import Entry, Family, NotDerivableError
from trlm_core.data.generated.problem import FaultyProblem, Problem
from trlm_core.data.generated.slips import FAULTS, NoSlip, Slip

PATIENCE = 400  # successive items without anything new, after which a family counts as used up
# reasoning-gym seeds item i with seed + i, so neighbouring seeds would repeat each other's items.
ITEMS_PER_SEED = 1_000_000

Accept = Callable[[Problem], bool]
AcceptPair = Callable[[Problem, FaultyProblem], bool]
Drawn = TypeVar("Drawn")


def draw_problems(
    family: str, sizes: dict[str, object], seed: int, *, accept: Accept, dropped: Counter[str] | None = None
) -> Iterator[Problem]:
    """Problems with a derivation that reasoning-gym's own scorer calls right, each question once.

    Stops when 400 successive items gave nothing new. `dropped` counts the items "drawn" and those that were "seen",
    "not_derivable", "wrong" or "not_accepted". Two families may share a question ("What is 4 + 3?"), with the same
    derivation. Raises ValueError for an unknown family or sizes that reasoning-gym refuses.
    """
    source = _source(family, sizes, seed)
    counts = Counter() if dropped is None else dropped
    yield from _draw(source, accept, counts, lambda entry, problem: problem)


def draw_pairs(
    family: str,
    sizes: dict[str, object],
    seed: int,
    *,
    faults: frozenset[str],
    accept: Accept,
    accept_pair: AcceptPair,
    dropped: Counter[str] | None = None,
) -> Iterator[tuple[Problem, FaultyProblem]]:
    """The problems of `draw_problems`, each with one faulty derivation of a kind in `faults`.

    Right and faulty derivation agree in number of steps and in length (characters of steps and answer), so that only
    the content tells them apart; a fault that `accept_pair` refuses does not fit. The kind is drawn evenly among those that
    fit the problem. Problems that no fault fits are counted in `dropped` as "no_fault". Raises ValueError also for an
    unknown kind of fault.
    """
    if unknown := faults - FAULTS.keys():
        raise ValueError(f"faults of {family}: wanted some of {sorted(FAULTS)}, got {sorted(unknown)}")
    source = _source(family, sizes, seed)
    counts = Counter() if dropped is None else dropped
    yield from _draw(source, accept, counts, lambda entry, problem: _pair(source, entry, problem, faults, accept_pair, counts))


@dataclass(frozen=True)
class _Source:
    """A family, the reasoning-gym dataset of the given sizes, and the seed it was made with."""

    family: Family
    dataset: Any
    seed: int

    def score(self, answer: str, entry: Entry) -> float:
        return self.dataset.score_answer(self.family.canonical(answer), entry)


def _source(name: str, sizes: dict[str, object], seed: int) -> _Source:
    if name not in FAMILIES:
        raise ValueError(f"family: wanted one of {sorted(FAMILIES)}, got {name!r}")
    try:
        dataset = reasoning_gym.create_dataset(name, seed=seed * ITEMS_PER_SEED, size=ITEMS_PER_SEED, **_configured(sizes))
    except (AssertionError, TypeError) as error:
        raise ValueError(f"sizes of {name}: reasoning-gym refuses {sizes}: {error}") from error
    return _Source(FAMILIES[name], dataset, seed)


def _configured(sizes: dict[str, object]) -> dict[str, Any]:
    """Sizes as reasoning-gym wants them: the case of the words to sort is an enum of its own, not its name."""
    if "transformation" not in sizes:
        return sizes
    return {**sizes, "transformation": TextTransformation(sizes["transformation"])}


def _draw(source: _Source, accept: Accept, counts: Counter[str], made: Callable[[Entry, Problem], Drawn | None]) -> Iterator[Drawn]:
    """What `made` makes of each item that passes the gate, until PATIENCE derivable items in a row make nothing."""
    seen: set[str] = set()
    fruitless = 0
    for place in range(ITEMS_PER_SEED):
        entry = source.dataset[place]
        counts["drawn"] += 1
        underivable = counts["not_derivable"]
        problem = _gate(source, entry, seen, accept, counts)
        result = None if problem is None else made(entry, problem)
        # An item that cannot be derived says little about what is left: a rare word counts a hundredth of a seen one.
        fruitless = fruitless + (0.01 if counts["not_derivable"] > underivable else 1) if result is None else 0
        if result is not None:
            yield result
        if fruitless >= PATIENCE:
            return


def _gate(source: _Source, entry: Entry, seen: set[str], accept: Accept, counts: Counter[str]) -> Problem | None:
    """The item's problem, or None with the reason counted."""
    try:
        problem = _problem(source.family, entry)
    except NotDerivableError:
        counts["not_derivable"] += 1
        return None
    reason = _objection(source, entry, problem, seen, accept)
    seen.add(problem.question)
    if reason:
        counts[reason] += 1
    return None if reason else problem


def _problem(family: Family, entry: Entry) -> Problem:
    steps, answer = family.derive(entry, NoSlip())
    return Problem(family.name, family.word(entry), steps, answer, family.answer_kind)


def _objection(source: _Source, entry: Entry, problem: Problem, seen: set[str], accept: Accept) -> str:
    if problem.question in seen:
        return "seen"
    if source.score(problem.answer, entry) != 1.0:
        return "wrong"
    return "" if accept(problem) else "not_accepted"


def _pair(
    source: _Source, entry: Entry, problem: Problem, faults: frozenset[str], accept_pair: AcceptPair, counts: Counter[str]
) -> tuple[Problem, FaultyProblem] | None:
    # Seeded by the question, so that a problem's fault does not depend on what was accepted before it.
    rng = Random(f"{source.seed} {problem.question}")
    for kind in rng.sample(sorted(faults), len(faults)):
        for slip in _slips(source.family, entry, kind, rng):
            faulty = _faulty(source.family, entry, slip)
            if faulty and _misleads(source, entry, problem, faulty) and accept_pair(problem, faulty):
                return problem, faulty
    counts["no_fault"] += 1
    return None


def _slips(family: Family, entry: Entry, kind: str, rng: Random) -> list[Slip]:
    """Every fault of this kind that the derivation has a place for, shuffled."""
    trial = NoSlip()
    family.derive(entry, trial)
    slips = [Slip(kind, place, option) for place, count in enumerate(trial.options[kind]) for option in range(count)]
    rng.shuffle(slips)
    return slips


def _faulty(family: Family, entry: Entry, slip: Slip) -> FaultyProblem | None:
    try:
        steps, answer = family.derive(entry, slip)
    except NotDerivableError:
        return None
    return FaultyProblem(steps, answer, slip.kind)


def _misleads(source: _Source, entry: Entry, problem: Problem, faulty: FaultyProblem) -> bool:
    """Wrong by the scorer, and alike in all that is not content."""
    alike = len(faulty.steps) == len(problem.steps) and _length(faulty) == _length(problem)
    return alike and faulty.answer != problem.answer and source.score(faulty.answer, entry) < 1.0


def _length(derivation: Problem | FaultyProblem) -> int:
    return len(" ".join(derivation.steps)) + len(derivation.answer)
