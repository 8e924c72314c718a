"""Problems and pairs that are drawn: right or wrong by reasoning-gym's own scorer, distinct, deterministic."""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

import pytest
import reasoning_gym

from trlm_core.data.generated.draw import ITEMS_PER_SEED, draw_pairs, draw_problems
from trlm_core.data.generated.families import FAMILIES, SMALL_SIZES
from trlm_core.data.generated.family import NotDerivableError
from trlm_core.data.generated.problem import FaultyProblem, Problem
from trlm_core.data.generated.slips import FAULTS, NoSlip

SEED = 7
PROBLEMS, PAIRS = 30, 15
MISREAD = frozenset({"misread"})
OTHERS = frozenset(FAULTS) - MISREAD


def anything(problem: Problem) -> bool:
    return True


def any_pair(problem: Problem, faulty: FaultyProblem) -> bool:
    return True


def small_dataset(name: str) -> Any:
    sizes: dict[str, Any] = SMALL_SIZES[name]
    if name == "word_sorting":
        sizes = {**sizes, "transformation": reasoning_gym.algorithmic.word_sorting.TextTransformation.LOWERCASE}
    return reasoning_gym.create_dataset(name, seed=SEED * ITEMS_PER_SEED, size=ITEMS_PER_SEED, **sizes)


@cache
def items(name: str) -> dict[str, dict[str, Any]]:
    """reasoning-gym's first items by our question, the answers kept only for its scorer."""
    dataset, family = small_dataset(name), FAMILIES[name]
    by_question: dict[str, dict[str, Any]] = {}
    for entry in (dataset[place] for place in range(1500)):
        try:
            by_question.setdefault(family.word(entry), entry)
        except NotDerivableError:
            continue
    return by_question


def score(name: str, question: str, answer: str) -> float:
    return small_dataset(name).score_answer(FAMILIES[name].canonical(answer), items(name)[question])


@cache
def problems(name: str) -> tuple[Problem, ...]:
    return tuple(islice(draw_problems(name, SMALL_SIZES[name], SEED, accept=anything), PROBLEMS))


@cache
def pairs(name: str, faults: frozenset[str]) -> tuple[tuple[Problem, FaultyProblem], ...]:
    return tuple(islice(draw_pairs(name, SMALL_SIZES[name], SEED, faults=faults, accept=anything, accept_pair=any_pair), PAIRS))


def length(derivation: Problem | FaultyProblem) -> int:
    return len(" ".join(derivation.steps)) + len(derivation.answer)


def closing_words(steps: tuple[str, ...]) -> str:
    return " ".join(step.rstrip(".").split()[-1] for step in steps)


def concludes(name: str, derivation: Problem | FaultyProblem) -> bool:
    """The answer is what the sentences end in: all of them in turn for lists, the last one for a single result."""
    kind, steps, answer = FAMILIES[name].answer_kind, derivation.steps, derivation.answer
    if name in ("number_sorting", "word_sorting"):
        return closing_words(steps) == answer.replace(",", "")
    if name == "number_filtering":
        return ", ".join(step.split()[0] for step in steps if step.endswith("keep.")) in (answer, "")
    if name == "knights_knaves":
        fitting = next(step for step in steps if step.endswith("fits."))
        return fitting.split(":")[0].split() == answer.replace(",", "").split()[1::2]
    if kind == "factors":
        return steps[-1] == f"{answer.split(' * ')[-1]} is prime."
    if kind == "fraction":
        return all(step.endswith(f"= {part}.") for step, part in zip(steps[-2:], answer.split("/"), strict=False))
    if kind == "yes_no":
        return steps[-1] == {"yes": "All done.", "no": "Some wait."}[answer]
    return steps[-1].replace(" ", "").endswith(f"{answer}.")


@pytest.mark.parametrize("name", FAMILIES)
def test_problems_are_right_by_the_scorer_of_reasoning_gym(name: str) -> None:
    assert len(problems(name)) == PROBLEMS
    assert all(score(name, problem.question, problem.answer) == 1.0 for problem in problems(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_each_question_is_asked_once(name: str) -> None:
    assert len({problem.question for problem in problems(name)}) == PROBLEMS


@pytest.mark.parametrize("name", FAMILIES)
def test_the_steps_conclude_with_the_answer(name: str) -> None:
    faulty = [fault for kinds in (MISREAD, OTHERS) for _, fault in pairs(name, kinds)]
    assert [d for d in (*problems(name), *faulty) if not concludes(name, d)] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_derivation_does_not_read_the_answer(name: str) -> None:
    for problem in problems(name):
        blind = {"metadata": unsolved(items(name)[problem.question]["metadata"]), "question": "", "answer": "nonsense"}
        assert FAMILIES[name].word(blind) == problem.question
        assert FAMILIES[name].derive(blind, NoSlip()) == (problem.steps, problem.answer)


def unsolved(metadata: dict[str, Any]) -> dict[str, Any]:
    """Without the fields in which reasoning-gym keeps parts of the solution."""
    solutions = {"solution", "solvable", "result", "total_legs", "factors", "binary", "target_repr", "decimal_value", "sorted_words"}
    solutions |= {"sorted_numbers", "simplified_numerator", "simplified_denominator", "reduction_factor", "factor"}
    return {key: value for key, value in metadata.items() if key not in solutions}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("faults", [MISREAD, OTHERS], ids=["misread", "others"])
def test_faulty_answers_are_wrong_by_the_scorer_of_reasoning_gym(name: str, faults: frozenset[str]) -> None:
    assert len(pairs(name, faults)) == PAIRS
    for problem, faulty in pairs(name, faults):
        assert score(name, problem.question, problem.answer) == 1.0
        assert score(name, problem.question, faulty.answer) < 1.0


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("faults", [MISREAD, OTHERS], ids=["misread", "others"])
def test_right_and_faulty_derivations_look_alike(name: str, faults: frozenset[str]) -> None:
    for problem, faulty in pairs(name, faults):
        assert len(faulty.steps) == len(problem.steps)
        assert length(faulty) == length(problem)
        assert faulty.fault in faults


@pytest.mark.parametrize("name", ["chain_sum", "leg_counting", "letter_counting", "lcm", "simple_equations"])
def test_derivations_agree_before_the_fault_and_differ_from_it_on(name: str) -> None:
    for problem, faulty in pairs(name, OTHERS):
        differing = [one != other for one, other in zip(problem.steps, faulty.steps, strict=True)]
        first = differing.index(True)
        before, at_fault = words(problem.steps[first]), words(faulty.steps[first])
        assert differing[-1]
        assert before[0] == at_fault[0]  # the sentence starts with what came before it, and goes wrong inside


def words(step: str) -> list[str]:
    return step.rstrip(".").split()


@pytest.mark.parametrize("name", ["number_filtering", "letter_counting", "spell_backward", "count_bits", "products"])
def test_kinds_of_fault_are_balanced(name: str) -> None:
    # An operand seldom has the length of the result that it takes the place of, so echoes are rarer.
    faults = frozenset(FAULTS) - {"echo_first", "echo_second"}
    drawn = islice(draw_pairs(name, SMALL_SIZES[name], SEED, faults=faults, accept=anything, accept_pair=any_pair), 60)
    counts = Counter(faulty.fault for _, faulty in drawn)
    assert len(counts) >= 2
    assert max(counts.values()) <= 2 * min(counts.values())


def first_questions(name: str, seed: int) -> list[str]:
    return [problem.question for problem in islice(draw_problems(name, SMALL_SIZES[name], seed, accept=anything), 40)]


@pytest.mark.parametrize("name", FAMILIES)
def test_same_seed_gives_same_problems_and_faults(name: str) -> None:
    again = islice(draw_problems(name, SMALL_SIZES[name], SEED, accept=anything), PROBLEMS)
    assert tuple(again) == problems(name)
    paired = islice(draw_pairs(name, SMALL_SIZES[name], SEED, faults=OTHERS, accept=anything, accept_pair=any_pair), PAIRS)
    assert tuple(paired) == pairs(name, OTHERS)


def test_neighbouring_seeds_do_not_repeat_each_others_items() -> None:
    assert len(set(first_questions("knights_knaves", 1)) & set(first_questions("knights_knaves", 2))) == 0


def test_accept_removes_the_questions_of_another_seed() -> None:
    held_out = set(first_questions("gcd", 1))
    assert held_out & set(first_questions("gcd", 2))
    rest = draw_problems("gcd", SMALL_SIZES["gcd"], 2, accept=lambda problem: problem.question not in held_out)
    assert not held_out & {problem.question for problem in rest}


def test_a_small_space_is_used_up_and_ends() -> None:
    dropped: Counter[str] = Counter()
    sizes: dict[str, object] = {"max_terms": 2, "max_digits": 1}
    drawn = list(draw_problems("products", sizes, SEED, accept=anything, dropped=dropped))
    assert 95 <= len(drawn) <= 100
    assert dropped["drawn"] == len(drawn) + dropped["seen"]
    assert dropped["seen"] >= 400


def test_drawing_ends_when_nothing_is_accepted() -> None:
    dropped: Counter[str] = Counter()
    assert list(draw_problems("chain_sum", {}, SEED, accept=lambda problem: False, dropped=dropped)) == []
    assert dropped["drawn"] == 400
    assert dropped["not_accepted"] + dropped["seen"] == 400


def test_wrong_labels_of_reasoning_gym_are_dropped() -> None:
    # Without brackets it ignores precedence, and labels 3 + 4 * 2 as 14.
    sizes: dict[str, object] = {"min_terms": 3, "max_terms": 3, "allow_parentheses": False, "operators": ("+", "*")}
    dropped: Counter[str] = Counter()
    for _ in islice(draw_problems("basic_arithmetic", sizes, SEED, accept=anything, dropped=dropped), 30):
        pass
    assert dropped["wrong"] > 0


def test_a_family_without_places_for_the_fault_gives_no_pairs() -> None:
    dropped: Counter[str] = Counter()
    miscount = frozenset({"miscount"})
    drawn: Iterator[object] = draw_pairs("chain_sum", {}, SEED, faults=miscount, accept=anything, accept_pair=any_pair, dropped=dropped)
    assert list(drawn) == []
    assert dropped["no_fault"] + dropped["seen"] == dropped["drawn"] == 400


def test_a_fault_that_is_refused_gives_way_to_the_next() -> None:
    def even(problem: Problem, faulty: FaultyProblem) -> bool:
        return int(faulty.answer) % 2 == 0

    sums = draw_pairs("chain_sum", SMALL_SIZES["chain_sum"], SEED, faults=frozenset({"wrong_result"}), accept=anything, accept_pair=even)
    answers = [int(faulty.answer) for _, faulty in islice(sums, 20)]
    assert len(answers) == 20
    assert not any(answer % 2 for answer in answers)


def test_pairs_that_are_never_accepted_end_soon() -> None:
    dropped: Counter[str] = Counter()
    refused = draw_pairs(
        "chain_sum", {}, SEED, faults=frozenset({"wrong_result"}), accept=anything, accept_pair=lambda *pair: False, dropped=dropped
    )
    assert list(refused) == []
    assert dropped["no_fault"] + dropped["seen"] == dropped["drawn"] == 400


def test_unknown_family_sizes_and_faults_are_named_in_the_error() -> None:
    with pytest.raises(ValueError, match=r"wanted one of .* got 'sudoku'"):
        next(draw_problems("sudoku", {}, SEED, accept=anything))
    with pytest.raises(ValueError, match=r"sizes of gcd: .*max_digits"):
        next(draw_problems("gcd", {"max_digits": 1}, SEED, accept=anything))
    with pytest.raises(ValueError, match="got \\['typo'\\]"):
        next(draw_pairs("gcd", {}, SEED, faults=frozenset({"typo"}), accept=anything, accept_pair=any_pair))
