"""A family of problems: how to word an item of reasoning-gym, derive its answer and write it for the scorer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trlm_core.data.generated.problem import AnswerKind
from trlm_core.data.generated.slips import NoSlip

Entry = dict[str, Any]
Derivation = tuple[tuple[str, ...], str]


class NotDerivableError(ValueError):
    """This item, or this fault, leaves nothing sensible to derive; the gate drops it and counts it."""


@dataclass(frozen=True)
class Family:
    """What turns an item of one reasoning-gym dataset into a problem of ours.

    `word` and `derive` read the item's metadata and never its answer. `canonical` turns our short answer into the
    form that the dataset's own scorer accepts.
    """

    name: str
    answer_kind: AnswerKind
    word: Callable[[Entry], str]
    derive: Callable[[Entry, NoSlip], Derivation]
    canonical: Callable[[str], str] = str
