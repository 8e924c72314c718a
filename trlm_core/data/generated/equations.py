"""Linear equations: "Solve for x: 3*x + 4 = 10" by "3*x = 10 - 4 = 6. x = 6 / 3 = 2."."""

import re

from trlm_core.data.generated.family import Derivation, Entry, Family, NotDerivableError
from trlm_core.data.generated.slips import NoSlip

# 3*x + 4 = 10, x - 4 = 6, 3*x = 6; with the constant in front only as sympy writes it: 10 - 3*x = 4
TERM = r"(?P<coefficient>-?(?:\d+\*)?)x"
SUM = re.compile(rf"{TERM}(?: (?P<sign>[+-]) (?P<constant>\d+))? = (?P<right>-?\d+)")
DIFFERENCE = re.compile(rf"(?P<constant>\d+) - {TERM} = (?P<right>-?\d+)")


def word_simple_equations(entry: Entry) -> str:
    return f"Solve for x: {_equation(entry)}"


def derive_simple_equations(entry: Entry, slip: NoSlip) -> Derivation:
    """Bring the constant to the other side, then divide by the coefficient."""
    equation = _equation(entry)
    if match := SUM.fullmatch(equation):
        return _solve_sum(match, slip)
    if match := DIFFERENCE.fullmatch(equation):
        return _solve_difference(match, slip)
    raise NotDerivableError(f"no equation of a form known here: {equation}")


def _equation(entry: Entry) -> str:
    """Always in x: the letter is no part of the problem."""
    return entry["metadata"]["equation"].replace(entry["metadata"]["variable"], "x")


def _solve_sum(match: re.Match[str], slip: NoSlip) -> Derivation:
    coefficient, right = _coefficient(match, slip), int(match["right"])
    if not match["sign"]:
        return _solve_product(coefficient, slip.read_number(right), (), slip)
    constant, right = slip.read_number(int(match["constant"])), slip.read_number(right)
    return _moved(coefficient, right, "-" if match["sign"] == "+" else "+", constant, slip)


def _solve_difference(match: re.Match[str], slip: NoSlip) -> Derivation:
    constant, coefficient = slip.read_number(int(match["constant"])), _coefficient(match, slip)
    right = slip.read_number(int(match["right"]))
    return _moved(coefficient, constant, "-", right, slip)


def _coefficient(match: re.Match[str], slip: NoSlip) -> int:
    """A bare x has no number to misread."""
    digits = match["coefficient"].rstrip("*")
    return slip.read_number(int(digits)) if digits.strip("-") else int(f"{digits}1")


def _moved(coefficient: int, left: int, sign: str, right: int, slip: NoSlip) -> Derivation:
    result = slip.computed(left + right if sign == "+" else left - right, left, right)
    steps = (f"{_term(coefficient)} = {left} {sign} {right} = {result}.",)
    return (steps, str(result)) if coefficient == 1 else _solve_product(coefficient, result, steps, slip)


def _solve_product(coefficient: int, right: int, steps: tuple[str, ...], slip: NoSlip) -> Derivation:
    if right % coefficient:
        raise NotDerivableError(f"{right} / {coefficient} is not whole")
    result = slip.computed(right // coefficient, right, coefficient)
    return (*steps, f"x = {right} / {coefficient} = {result}."), str(result)


def _term(coefficient: int) -> str:
    return {1: "x", -1: "-x"}.get(coefficient, f"{coefficient}*x")


EQUATIONS = (Family("simple_equations", "number", word_simple_equations, derive_simple_equations),)
