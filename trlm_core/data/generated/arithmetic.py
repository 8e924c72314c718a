"""Sums, products and bracketed expressions: "What is 4 + 3 - 2?" by "4 + 3 = 7. 7 - 2 = 5."."""

from collections import deque
from collections.abc import Callable
from decimal import Decimal

from trlm_core.data.generated.family import Derivation, Entry, Family, NotDerivableError
from trlm_core.data.generated.notation import number_text
from trlm_core.data.generated.slips import NoSlip

OPERATIONS: dict[str, Callable[[Decimal, Decimal], Decimal]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
}
SUMS, PRODUCTS = ("+", "-"), ("*", "/")


def word_expression(entry: Entry) -> str:
    expression = entry["metadata"]["expression"].replace("( ", "(").replace(" )", ")")
    return f"What is {expression}?"


def derive_expression(entry: Entry, slip: NoSlip) -> Derivation:
    """One sentence for each operation, in the order of evaluation: brackets, then * and /, then + and -."""
    steps: list[str] = []
    value = _sum(deque(entry["metadata"]["expression"].split(" ")), slip, steps)
    if not steps:
        raise NotDerivableError("an expression without an operation")
    return tuple(steps), number_text(value)


def _sum(tokens: deque[str], slip: NoSlip, steps: list[str]) -> Decimal:
    value = _product(tokens, slip, steps)
    while tokens and tokens[0] in SUMS:
        value = _operate(value, tokens.popleft(), _product(tokens, slip, steps), slip, steps)
    return value


def _product(tokens: deque[str], slip: NoSlip, steps: list[str]) -> Decimal:
    value = _term(tokens, slip, steps)
    while tokens and tokens[0] in PRODUCTS:
        value = _operate(value, tokens.popleft(), _term(tokens, slip, steps), slip, steps)
    return value


def _term(tokens: deque[str], slip: NoSlip, steps: list[str]) -> Decimal:
    token = tokens.popleft()
    if token not in ("(", "-("):
        return slip.read_number(Decimal(token))
    value = _sum(tokens, slip, steps)
    assert tokens.popleft() == ")", "reasoning-gym closes every bracket"
    return value if token == "(" else _negated(value, slip, steps)


def _negated(value: Decimal, slip: NoSlip, steps: list[str]) -> Decimal:
    result = slip.computed(-value, value)
    steps.append(f"-({number_text(value)}) = {number_text(result)}.")
    return result


def _operate(left: Decimal, sign: str, right: Decimal, slip: NoSlip, steps: list[str]) -> Decimal:
    exact = _quotient(left, right) if sign == "/" else OPERATIONS[sign](left, right)
    result = slip.computed(exact, left, right)
    steps.append(f"{number_text(left)} {sign} {number_text(right)} = {number_text(result)}.")
    return result


def _quotient(left: Decimal, right: Decimal) -> Decimal:
    if right == 0 or left % right != 0:
        raise NotDerivableError(f"{left} / {right} is not whole")
    return left / right


def derive_products(entry: Entry, slip: NoSlip) -> Derivation:
    """From left to right; a factor of several digits is split by place value."""
    first, *others = (slip.read_number(int(factor)) for factor in entry["metadata"]["expression"].split(" * "))
    steps: list[str] = []
    value = first
    for factor in others:
        value = _multiply(value, factor, slip, steps)
    return tuple(steps), str(value)


def _multiply(left: int, right: int, slip: NoSlip, steps: list[str]) -> int:
    total = 0
    for place, (one, other) in enumerate(_partial_factors(left, right)):
        product = slip.computed(one * other, one, other)
        steps.append(f"{one} * {other} = {product}.")
        total = added(total, product, slip, steps) if place else product
    return total


def _partial_factors(left: int, right: int) -> list[tuple[int, int]]:
    """56 * 9 is 50 * 9 and 6 * 9."""
    if abs(right) >= 10:
        return [(left, part) for part in place_values(right)]
    return [(part, right) for part in place_values(left)]


def added(total: int, product: int, slip: NoSlip, steps: list[str]) -> int:
    result = slip.computed(total + product, total, product)
    steps.append(f"{total} + {product} = {result}.")
    return result


def place_values(number: int) -> list[int]:
    """-305 is [-300, -5]; zero is [0]."""
    sign, digits = (-1 if number < 0 else 1), str(abs(number))
    values = [sign * int(digit) * 10 ** (len(digits) - 1 - place) for place, digit in enumerate(digits)]
    return [value for value in values if value] or [0]


ARITHMETIC = (
    Family("chain_sum", "number", word_expression, derive_expression),
    Family("decimal_chain_sum", "number", word_expression, derive_expression),
    Family("basic_arithmetic", "number", word_expression, derive_expression),
    Family("products", "number", word_expression, derive_products),
)
