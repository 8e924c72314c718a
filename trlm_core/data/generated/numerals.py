"""Numbers in other bases: "Convert 13 from base 10 to base 2" by "13 = 2 * 6 + 1. ... Backward: 1 1 0 1."."""

from trlm_core.data.generated.family import Derivation, Entry, Family, NotDerivableError
from trlm_core.data.generated.notation import spaced
from trlm_core.data.generated.slips import NoSlip

DECIMAL = 10


def word_base_conversion(entry: Entry) -> str:
    metadata = entry["metadata"]
    return f"Convert {metadata['source_repr']} from base {metadata['source_base']} to base {metadata['target_base']}"


def derive_base_conversion(entry: Entry, slip: NoSlip) -> Derivation:
    """Between base 10 and a smaller one: other pairs would take two conversions."""
    digits, source, target = (entry["metadata"][key] for key in ("source_repr", "source_base", "target_base"))
    if source == DECIMAL and target < DECIMAL:
        return _from_decimal(slip.read_number(int(digits)), target, slip)
    if target == DECIMAL and source < DECIMAL and len(digits) > 1:
        return _to_decimal([slip.read(int(digit), range(source)) for digit in digits], source, slip)
    raise NotDerivableError(f"{digits} from base {source} to base {target}: no conversion of one pass")


def _from_decimal(number: int, base: int, slip: NoSlip) -> Derivation:
    """Divide until nothing is left; the remainders are the digits from last to first."""
    steps: list[str] = []
    digits = ""
    while number > 0 or not digits:
        quotient = slip.computed(number // base, number, base)
        remainder = slip.computed(number % base, number, base)
        if not 0 <= quotient < number or not 0 <= remainder < base:
            raise NotDerivableError(f"{number} = {base} * {quotient} + {remainder} is no division")
        steps.append(f"{number} = {base} * {quotient} + {remainder}.")
        number, digits = quotient, f"{remainder}{digits}"
    return (*steps, f"Backward: {spaced(digits)}."), digits


def _to_decimal(digits: list[int], base: int, slip: NoSlip) -> Derivation:
    """Multiply by the base and add the next digit."""
    steps: list[str] = []
    value = digits[0]
    for digit in digits[1:]:
        result = slip.computed(value * base + digit, value, base, digit)
        steps.append(f"{value} * {base} + {digit} = {result}.")
        value = result
    return tuple(steps), str(value)


def word_count_bits(entry: Entry) -> str:
    return f"How many 1 bits are in {entry['metadata']['number']}?"


def derive_count_bits(entry: Entry, slip: NoSlip) -> Derivation:
    """Halve until nothing is left, noting the last bit each time: "13: 1. 6: 0. 3: 1. 1: 1. Ones: 3."."""
    number = slip.read_number(entry["metadata"]["number"])
    steps: list[str] = []
    ones = 0
    while number > 0:
        steps.append(f"{number}: {number % 2}.")
        ones += number % 2
        half = slip.computed(number // 2, number)
        if not 0 <= half < number:
            raise NotDerivableError(f"{half} is no half of {number}")
        number = half
    ones = slip.counted(ones)
    return (*steps, f"Ones: {ones}."), str(ones)


NUMERALS = (
    Family("base_conversion", "number", word_base_conversion, derive_base_conversion),
    Family("count_bits", "number", word_count_bits, derive_count_bits),
)
