"""Keeping some numbers of a list: "Keep numbers larger than 5: 3, 8, 9" by "3 < 5, discard. 8 > 5, keep. ..."."""

from decimal import Decimal

from trlm_core.data.generated.family import Derivation, Entry, Family
from trlm_core.data.generated.notation import listing, quoted_list
from trlm_core.data.generated.slips import NoSlip

NOTHING = "none"


def word_number_filtering(entry: Entry) -> str:
    metadata = entry["metadata"]
    action, size = metadata["operation"].split("_")
    return f"{action.capitalize()} numbers {size} than {metadata['filter_value']}: {listing(metadata['original_numbers'])}"


def derive_number_filtering(entry: Entry, slip: NoSlip) -> Derivation:
    """Each number is compared with the bound.

    "discard" is three letters longer than "keep", as a kept digit adds three to the answer ("8, 9"): so a wrong
    verdict about a digit leaves the length as it was.
    """
    metadata = entry["metadata"]
    bound = slip.read_number(Decimal(metadata["filter_value"]))
    steps: list[str] = []
    kept: list[Decimal] = []
    for asked in metadata["original_numbers"]:
        number = slip.read_number(Decimal(asked))
        sign = _comparison(number, bound, slip)
        keep = _kept(sign, metadata["operation"])
        steps.append(f"{number} {sign} {bound}, {'keep' if keep else 'discard'}.")
        kept += [number] if keep else []
    return tuple(steps), listing(kept) or NOTHING


def _comparison(number: Decimal, bound: Decimal, slip: NoSlip) -> str:
    if number == bound:
        return "="
    return ">" if slip.judged(number > bound) else "<"


def _kept(sign: str, operation: str) -> bool:
    """A number equal to the bound is neither larger nor smaller."""
    action, size = operation.split("_")
    return (sign == {"larger": ">", "smaller": "<"}[size]) == (action == "keep")


def canonical_number_filtering(answer: str) -> str:
    return "[]" if answer == NOTHING else quoted_list(answer)


FILTERING = (Family("number_filtering", "numbers", word_number_filtering, derive_number_filtering, canonical_number_filtering),)
