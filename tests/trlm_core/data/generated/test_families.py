"""One worked example per family: the metadata of an item, and the question, steps and answer made of it."""

from typing import Any

import pytest

from trlm_core.data.generated.families import FAMILIES, SMALL_SIZES
from trlm_core.data.generated.family import NotDerivableError
from trlm_core.data.generated.slips import NoSlip, Slip

SAGES = {"knight": "sage", "knave": "fool", "a_knight": "a sage", "a_knave": "a fool"}
PUZZLE = {
    "names": ["Mia", "Noah"],
    "knight_knave_terms": SAGES,
    "statements": (("and", ("lying", 1), ("telling-truth", 0)), ("not", ("telling-truth", 0))),
}
Worked = tuple[dict[str, Any], str, tuple[str, ...], str]
WORKED: dict[str, Worked] = {
    "chain_sum": ({"expression": "4 + 3 - 9"}, "What is 4 + 3 - 9?", ("4 + 3 = 7.", "7 - 9 = -2."), "-2"),
    "decimal_chain_sum": ({"expression": "4.2 + 3.8"}, "What is 4.2 + 3.8?", ("4.2 + 3.8 = 8.",), "8"),
    "basic_arithmetic": (
        {"expression": "-( 8 / 2 ) + 3 * -5"},
        "What is -(8 / 2) + 3 * -5?",
        ("8 / 2 = 4.", "-(4) = -4.", "3 * -5 = -15.", "-4 + -15 = -19."),
        "-19",
    ),
    "products": (
        {"expression": "7 * 8 * 9"},
        "What is 7 * 8 * 9?",
        ("7 * 8 = 56.", "50 * 9 = 450.", "6 * 9 = 54.", "450 + 54 = 504."),
        "504",
    ),
    "leg_counting": (
        {"animals": {"crab": 3, "praying mantis": 2}},
        "How many legs do 3 crabs and 2 praying mantises have?",
        ("3 crabs: 3 * 10 = 30.", "2 praying mantises: 2 * 6 = 12.", "30 + 12 = 42."),
        "42",
    ),
    "letter_counting": (
        {"target_letter": "a", "span": ["Bed", "and", "banana"]},
        "How many times is the letter a in: bed and banana?",
        ("bed 0, total 0.", "and 1, total 1.", "banana 3, total 4."),
        "4",
    ),
    "number_sorting": (
        {"original_numbers": ["31.0", "4.0", "15.0"], "direction": "ascending"},
        "Sort ascending: 31, 4, 15",
        ("Smallest of 31, 4, 15 is 4.", "Smallest of 31, 15 is 15.", "Then 31."),
        "4, 15, 31",
    ),
    "word_sorting": (
        {"transformed_words": ["cat", "ant", "bed"], "direction": "descending"},
        "Sort Z to A: cat, ant, bed",
        ("Last of cat, ant, bed is cat.", "Last of ant, bed is bed.", "Then ant."),
        "cat, bed, ant",
    ),
    "number_filtering": (
        {"original_numbers": ["3", "8", "5"], "filter_value": "5", "operation": "remove_smaller"},
        "Remove numbers smaller than 5: 3, 8, 5",
        ("3 < 5, discard.", "8 > 5, keep.", "5 = 5, keep."),
        "8, 5",
    ),
    "spell_backward": ({"word": "Sun"}, "Spell backward: sun", ("s u n.", "Backward: n u s."), "nus"),
    "string_insertion": (
        {"string": "CEABCD"},
        "From left to right, without overlap, insert A after ABCD, B after BCDE, C after CDEA, D after DEAB, E after EABC: CEABCD",
        ("C E A B C D.", "E A B C adds E.", "Result: C E A B C E D."),
        "CEABCED",
    ),
    "gcd": ({"numbers": [12, 18]}, "GCD of 12 and 18?", ("18 = 12 * 1 + 6.", "12 = 6 * 2 + 0.", "GCD 6."), "6"),
    "lcm": (
        {"numbers": [4, 6]},
        "LCM of 4 and 6?",
        ("6 = 4 * 1 + 2.", "4 = 2 * 2 + 0.", "GCD 2.", "4 / 2 = 2.", "2 * 6 = 12."),
        "12",
    ),
    "prime_factorization": (
        {"number": 12},
        "Factor 12 into primes",
        ("12 / 2 = 6.", "6 / 2 = 3.", "3 is prime."),
        "2 * 2 * 3",
    ),
    "fraction_simplification": (
        {"numerator": 6, "denominator": 8},
        "Simplify 6/8",
        ("8 = 6 * 1 + 2.", "6 = 2 * 3 + 0.", "GCD 2.", "6 / 2 = 3.", "8 / 2 = 4."),
        "3/4",
    ),
    "simple_equations": (
        {"equation": "10 - 3*q = 4", "variable": "q"},
        "Solve for x: 10 - 3*x = 4",
        ("3*x = 10 - 4 = 6.", "x = 6 / 3 = 2."),
        "2",
    ),
    "base_conversion": (
        {"source_repr": "13", "source_base": 10, "target_base": 2},
        "Convert 13 from base 10 to base 2",
        ("13 = 2 * 6 + 1.", "6 = 2 * 3 + 0.", "3 = 2 * 1 + 1.", "1 = 2 * 0 + 1.", "Backward: 1 1 0 1."),
        "1101",
    ),
    "count_bits": (
        {"number": 13},
        "How many 1 bits are in 13?",
        ("13: 1.", "6: 0.", "3: 1.", "1: 1.", "Ones: 3."),
        "3",
    ),
    "knights_knaves": (
        PUZZLE,
        "Sages tell the truth, fools lie. Mia: Noah is a fool and Mia is a sage. Noah: not (Mia is a sage). Who is what?",
        (
            "Mia: Noah is a fool and Mia is a sage.",
            "Noah: not (Mia is a sage).",
            "sage sage: F F, fail.",
            "sage fool: T F, fits.",
            "fool sage: F T, fits.",
            "fool fool: F T, fail.",
        ),
        "Mia sage, Noah fool",
    ),
    "course_schedule": (
        {"courses": [2, 0, 1, 3], "prerequisites": [(3, 2), (1, 0), (2, 3)]},
        "Courses 0 to 3: 1 needs 0, 2 needs 3, 3 needs 2. Can all be taken?",
        ("0: take.", "1 needs 0: take.", "2 needs 3: wait.", "3 needs 2: wait.", "Some wait."),
        "no",
    ),
}


def item(name: str, **changed: object) -> dict[str, Any]:
    return {"answer": "not to be read", "metadata": {**WORKED[name][0], **changed}}


def test_every_family_has_small_sizes_and_a_worked_example() -> None:
    assert FAMILIES.keys() == SMALL_SIZES.keys() == WORKED.keys()
    assert all(name == family.name for name, family in FAMILIES.items())


@pytest.mark.parametrize("name", WORKED)
def test_an_item_is_worded_and_derived_as_worked_here(name: str) -> None:
    _, question, steps, answer = WORKED[name]
    assert FAMILIES[name].word(item(name)) == question
    assert FAMILIES[name].derive(item(name), NoSlip()) == (steps, answer)


def test_one_animal_alone_is_singular() -> None:
    assert FAMILIES["leg_counting"].word(item("leg_counting", animals={"sheep": 1})) == "How many legs does 1 sheep have?"


def test_an_equation_is_the_same_question_in_any_letter() -> None:
    family = FAMILIES["simple_equations"]
    assert family.word(item("simple_equations", equation="3*q = 6", variable="q")) == "Solve for x: 3*x = 6"
    assert family.word(item("simple_equations", equation="3*b = 6", variable="b")) == "Solve for x: 3*x = 6"


@pytest.mark.parametrize(
    ("equation", "steps"),
    [
        ("3*x = 6", ("x = 6 / 3 = 2.",)),
        ("x - 4 = 6", ("x = 6 + 4 = 10.",)),
        ("5 - x = 2", ("x = 5 - 2 = 3.",)),
        ("-2*x + 8 = 2", ("-2*x = 2 - 8 = -6.", "x = -6 / -2 = 3.")),
    ],
)
def test_each_form_of_equation_is_solved(equation: str, steps: tuple[str, ...]) -> None:
    derived, _ = FAMILIES["simple_equations"].derive(item("simple_equations", equation=equation, variable="x"), NoSlip())
    assert derived == steps


def test_a_number_from_a_smaller_base_is_built_digit_by_digit() -> None:
    entry = item("base_conversion", source_repr="203", source_base=4, target_base=10)
    assert FAMILIES["base_conversion"].derive(entry, NoSlip()) == (("2 * 4 + 0 = 8.", "8 * 4 + 3 = 35."), "35")


def test_a_filter_that_keeps_nothing_says_none() -> None:
    family = FAMILIES["number_filtering"]
    assert family.derive(item("number_filtering", operation="keep_smaller", filter_value="1"), NoSlip())[1] == "none"
    assert family.canonical("none") == "[]"


@pytest.mark.parametrize(
    ("name", "answer", "canonical"),
    [
        ("number_sorting", "4, 15, 31", "['4', '15', '31']"),
        ("prime_factorization", "2 * 2 * 3", "2 × 2 × 3"),
        ("fraction_simplification", "1", "1/1"),
        ("course_schedule", "no", "False"),
    ],
)
def test_an_answer_is_rewritten_for_the_scorer(name: str, answer: str, canonical: str) -> None:
    assert FAMILIES[name].canonical(answer) == canonical


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("basic_arithmetic", {"expression": "7 / 2"}),
        ("letter_counting", {"span": ["2889"]}),
        ("word_sorting", {"transformed_words": ["Ant", "bed"]}),
        ("word_sorting", {"transformed_words": ["ant", "ant"]}),
        ("spell_backward", {"word": "Jos"}),
        ("string_insertion", {"string": "AAAAAA"}),
        ("simple_equations", {"equation": "3*q = 7"}),
        ("base_conversion", {"source_base": 3, "source_repr": "12"}),
    ],
)
def test_an_item_without_a_plain_derivation_is_refused(name: str, changed: dict[str, object]) -> None:
    with pytest.raises(NotDerivableError):
        FAMILIES[name].derive(item(name, **changed), NoSlip())


def test_a_fault_is_carried_through_to_the_answer() -> None:
    wrong_first_result = Slip("wrong_result", place=0, option=0)
    assert FAMILIES["chain_sum"].derive(item("chain_sum"), wrong_first_result) == (("4 + 3 = 17.", "17 - 9 = 8."), "8")


def test_a_misread_letter_is_spelled_as_misread() -> None:
    third_vowel_for_u = Slip("misread", place=0, option=4)
    assert FAMILIES["spell_backward"].derive(item("spell_backward"), third_vowel_for_u) == (("s i n.", "Backward: n i s."), "nis")


def test_a_wrong_pick_leaves_the_other_numbers_for_later() -> None:
    steps, answer = FAMILIES["number_sorting"].derive(item("number_sorting"), Slip("wrong_pick", place=1, option=0))
    assert steps == ("Smallest of 31, 4, 15 is 4.", "Smallest of 31, 15 is 31.", "Then 15.")
    assert answer == "4, 31, 15"
