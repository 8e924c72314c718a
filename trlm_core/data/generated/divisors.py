"""Common divisors and multiples, prime factors, fractions: "GCD of 12 and 18?" by "18 = 12 * 1 + 6. ... GCD 6."."""

from trlm_core.data.generated.family import Derivation, Entry, Family, NotDerivableError
from trlm_core.data.generated.notation import enumeration
from trlm_core.data.generated.slips import NoSlip


def word_gcd(entry: Entry) -> str:
    return f"GCD of {enumeration(entry['metadata']['numbers'])}?"


def derive_gcd(entry: Entry, slip: NoSlip) -> Derivation:
    first, *others = (slip.read_number(number) for number in entry["metadata"]["numbers"])
    steps: list[str] = []
    divisor = first
    for number in others:
        divisor = _euclid(divisor, number, slip, steps)
    return tuple(steps), str(divisor)


def word_lcm(entry: Entry) -> str:
    return f"LCM of {enumeration(entry['metadata']['numbers'])}?"


def derive_lcm(entry: Entry, slip: NoSlip) -> Derivation:
    """LCM(a, b) = a / GCD(a, b) * b."""
    first, *others = (slip.read_number(number) for number in entry["metadata"]["numbers"])
    steps: list[str] = []
    multiple = first
    for number in others:
        cofactor = _divide(multiple, _euclid(multiple, number, slip, steps), slip, steps)
        multiple = slip.computed(cofactor * number, cofactor, number)
        steps.append(f"{cofactor} * {number} = {multiple}.")
    return tuple(steps), str(multiple)


def _euclid(one: int, other: int, slip: NoSlip, steps: list[str]) -> int:
    """The last remainder that is not zero. A wrong remainder must still be one: 0 <= remainder < divisor."""
    dividend, divisor = max(one, other), min(one, other)
    while divisor:
        remainder = slip.computed(dividend % divisor, dividend, divisor)
        if not 0 <= remainder < divisor:
            raise NotDerivableError(f"{remainder} is no remainder of a division by {divisor}")
        steps.append(f"{dividend} = {divisor} * {dividend // divisor} + {remainder}.")
        dividend, divisor = divisor, remainder
    steps.append(f"GCD {dividend}.")
    return dividend


def _divide(dividend: int, divisor: int, slip: NoSlip, steps: list[str]) -> int:
    if dividend % divisor:
        raise NotDerivableError(f"{dividend} / {divisor} is not whole")
    quotient = slip.computed(dividend // divisor, dividend, divisor)
    steps.append(f"{dividend} / {divisor} = {quotient}.")
    return quotient


def word_prime_factorization(entry: Entry) -> str:
    return f"Factor {entry['metadata']['number']} into primes"


def derive_prime_factorization(entry: Entry, slip: NoSlip) -> Derivation:
    """Divide by the smallest divisor until a prime is left."""
    rest = slip.read_number(entry["metadata"]["number"])
    steps: list[str] = []
    factors: list[int] = []
    while (divisor := smallest_divisor(rest)) < rest:
        factors.append(divisor)
        rest = _divide(rest, divisor, slip, steps)
    steps.append(f"{rest} is prime.")
    return tuple(steps), " * ".join(map(str, [*factors, rest]))


def smallest_divisor(number: int) -> int:
    """Above 1; the number itself if it is prime."""
    if number < 2:
        raise NotDerivableError(f"{number} has no prime factor")
    return next((divisor for divisor in range(2, int(number**0.5) + 1) if number % divisor == 0), number)


def canonical_factors(answer: str) -> str:
    return answer.replace("*", "×")


def word_fraction_simplification(entry: Entry) -> str:
    return f"Simplify {entry['metadata']['numerator']}/{entry['metadata']['denominator']}"


def derive_fraction_simplification(entry: Entry, slip: NoSlip) -> Derivation:
    numerator = slip.read_number(entry["metadata"]["numerator"])
    denominator = slip.read_number(entry["metadata"]["denominator"])
    steps: list[str] = []
    divisor = _euclid(numerator, denominator, slip, steps)
    above, below = (_divide(number, divisor, slip, steps) for number in (numerator, denominator))
    if above < 1 or below < 1:
        raise NotDerivableError(f"{above}/{below} is no positive fraction")
    return tuple(steps), f"{above}/{below}" if below > 1 else str(above)


def canonical_fraction(answer: str) -> str:
    return answer if "/" in answer else f"{answer}/1"


DIVISORS = (
    Family("gcd", "number", word_gcd, derive_gcd),
    Family("lcm", "number", word_lcm, derive_lcm),
    Family("prime_factorization", "factors", word_prime_factorization, derive_prime_factorization, canonical_factors),
    Family(
        "fraction_simplification",
        "fraction",
        word_fraction_simplification,
        derive_fraction_simplification,
        canonical_fraction,
    ),
)
