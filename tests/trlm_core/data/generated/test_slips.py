"""Slips change one place and no other, and only by a believable amount."""

from decimal import Decimal

from trlm_core.data.generated.slips import FAULTS, NoSlip, Slip, misreadings, nearby, transpositions


def test_no_slip_returns_every_value_and_notes_the_faults_that_fit() -> None:
    slip = NoSlip()
    assert slip.computed(7) == 7
    assert slip.judged(True) is True
    assert slip.picked("a", ["a", "b", "c"]) == "a"
    assert slip.counted(0) == 0
    assert slip.spelled("nus") == "nus"
    assert slip.options == {
        "wrong_result": [8],
        "near_miss": [4],
        "echo_first": [0],
        "echo_second": [0],
        "wrong_verdict": [1],
        "wrong_pick": [2],
        "miscount": [2],
        "misspelled": [2],
    }


def test_a_slip_changes_its_own_place_only() -> None:
    slip = Slip("wrong_result", place=1, option=1)
    assert [slip.computed(7), slip.computed(7), slip.computed(7), slip.counted(7)] == [7, -3, 7, 7]


def test_an_echo_is_one_of_the_operands_and_never_the_result() -> None:
    trial = NoSlip()
    assert [trial.computed(4, 2, 2), trial.computed(3, 3, 1)] == [4, 3]
    assert (trial.options["echo_first"], trial.options["echo_second"]) == ([1, 0], [0, 1])
    assert Slip("echo_first", place=0, option=0).computed(30, 6, 5) == 6
    assert Slip("echo_second", place=0, option=0).computed(30, 6, 5) == 5


def test_a_misread_number_keeps_its_sign() -> None:
    assert misread_numbers(2) == [3, 1, 4, 12, 5, 6, 7]
    assert misread_numbers(-2) == [-1, -3, -4, -12, -5, -6, -7]
    assert misread_numbers(0) == [1, 2, 10, 3, 4, 5]


def misread_numbers(number: int) -> list[int]:
    trial = NoSlip()
    trial.read_number(number)
    return [Slip("misread", 0, option).read_number(number) for option in range(trial.options["misread"][0])]


def test_a_decimal_is_off_by_units_of_its_last_place() -> None:
    assert nearby(Decimal("4.2"), (1, -1, 2, -2)) == [Decimal("4.3"), Decimal("4.1"), Decimal("4.4"), Decimal("4.0")]
    assert nearby(Decimal("30"), (1, -1)) == [Decimal("31"), Decimal("29")]


def test_a_vowel_is_misread_as_a_vowel_and_a_consonant_as_its_neighbour() -> None:
    assert misreadings("at") == ["et", "it", "ot", "ut", "as", "av"]


def test_swapping_equal_letters_is_no_fault() -> None:
    assert transpositions("bee") == ["ebe"]


def test_every_kind_of_fault_says_what_it_is() -> None:
    assert set(FAULTS) == {
        "wrong_result",
        "near_miss",
        "echo_first",
        "echo_second",
        "misread",
        "wrong_pick",
        "wrong_verdict",
        "miscount",
        "misspelled",
    }
    assert all(FAULTS.values())
