"""Liars and course plans: "Courses 0 to 2: 1 needs 0, 2 needs 1. Can all be taken?" by "0: take. 1 needs 0: take. ..."."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from trlm_core.data.generated.family import Derivation, Entry, Family, NotDerivableError
from trlm_core.data.generated.notation import listing
from trlm_core.data.generated.slips import NoSlip

Claim = tuple[Any, ...]  # ("lying", 1), ("and", ("lying", 0), ("telling-truth", 1)), as reasoning-gym writes it
ROLES = ("telling-truth", "lying")
CONNECTIVES = {"and": " and ", "or": " or ", "<=>": " if and only if "}


def word_knights_knaves(entry: Entry) -> str:
    honest, liar = _roles(entry)
    claims = " ".join(_said(entry["metadata"]["statements"], entry))
    return f"{_plural(honest).capitalize()} tell the truth, {_plural(liar)} lie. {claims} Who is what?"


def derive_knights_knaves(entry: Entry, slip: NoSlip) -> Derivation:
    """Try every assignment of roles; the first where each claim is as true as its speaker is the answer.

    The claims are marked T and F, and the verdicts are "fits" and "fail", so that a wrong one is as long as a right one.
    """
    names, roles = entry["metadata"]["names"], _roles(entry)
    claims = [_read_claim(claim, slip) for claim in entry["metadata"]["statements"]]
    steps = _said(claims, entry)
    fitting = []
    for world in product((True, False), repeat=len(names)):
        truths = tuple(slip.judged(_holds(claim, world)) for claim in claims)
        fitting += [world] if truths == world else []
        marks = " ".join("T" if truth else "F" for truth in truths)
        steps.append(f"{_roles_text(world, roles)}: {marks}, {'fits' if truths == world else 'fail'}.")
    if not fitting:
        raise NotDerivableError("no assignment fits")
    return tuple(steps), listing(f"{name} {_role(truth, roles)}" for name, truth in zip(names, fitting[0], strict=True))


def _roles(entry: Entry) -> tuple[str, str]:
    terms = entry["metadata"]["knight_knave_terms"]
    return terms["knight"], terms["knave"]


def _role(honest: bool, roles: tuple[str, str]) -> str:
    return roles[0] if honest else roles[1]


def _roles_text(world: tuple[bool, ...], roles: tuple[str, str]) -> str:
    return " ".join(_role(honest, roles) for honest in world)


def _plural(role: str) -> str:
    return "heroes" if role == "hero" else f"{role}s"


def _said(claims: Sequence[Claim], entry: Entry) -> list[str]:
    speakers = zip(entry["metadata"]["names"], claims, strict=True)
    return [f"{name}: {_claim_text(claim, entry)}." for name, claim in speakers]


def _claim_text(claim: Claim, entry: Entry) -> str:
    """ "Liam is a sinner", "if Emma is a saint then not (Liam is a saint)"."""
    kind, *parts = claim
    if kind in ROLES:
        term = "a_knight" if kind == ROLES[0] else "a_knave"
        return f"{entry['metadata']['names'][parts[0]]} is {entry['metadata']['knight_knave_terms'][term]}"
    if kind == "not":
        return f"not ({_claim_text(parts[0], entry)})"
    texts = [_part_text(part, entry) for part in parts]
    return f"if {texts[0]} then {texts[1]}" if kind == "->" else CONNECTIVES[kind].join(texts)


def _part_text(claim: Claim, entry: Entry) -> str:
    text = _claim_text(claim, entry)
    return text if claim[0] in ROLES else f"({text})"


def _read_claim(claim: Claim, slip: NoSlip) -> Claim:
    kind, *parts = claim
    if kind in ROLES:
        return slip.read(kind, ROLES), *parts
    return kind, *(_read_claim(part, slip) for part in parts)


def _holds(claim: Claim, world: tuple[bool, ...]) -> bool:
    kind, *parts = claim
    if kind in ROLES:
        return world[parts[0]] == (kind == ROLES[0])
    truths = [_holds(part, world) for part in parts]
    return {
        "not": not truths[0],
        "and": all(truths),
        "or": any(truths),
        "->": not truths[0] or truths[-1],
        "<=>": truths[0] == truths[-1],
    }[kind]


def word_course_schedule(entry: Entry) -> str:
    """Prerequisites in sorted order: their order in the item is random and means nothing."""
    needs = listing(f"{course} needs {needed}" for course, needed in sorted(entry["metadata"]["prerequisites"]))
    return f"Courses 0 to {len(entry['metadata']['courses']) - 1}: {needs}. Can all be taken?"


def derive_course_schedule(entry: Entry, slip: NoSlip) -> Derivation:
    """Take courses whose needs are met until none is left or all the rest wait.

    "All done." with "yes" is as long as "Some wait." with "no".
    """
    needs = _read_needs(entry, slip)
    taken = _taken(needs, slip)
    waiting = [course for course in needs if course not in taken]
    steps = [f"{_needs_text(course, needs)}: take." for course in taken]
    steps += [f"{_needs_text(course, needs)}: wait." for course in waiting]
    return (*steps, "Some wait." if waiting else "All done."), "no" if waiting else "yes"


def _read_needs(entry: Entry, slip: NoSlip) -> dict[int, list[int]]:
    """Course -> the courses it needs. A misread one is another course, not yet named."""
    courses = sorted(entry["metadata"]["courses"])
    needs: dict[int, list[int]] = {course: [] for course in courses}
    for course, needed in sorted(entry["metadata"]["prerequisites"]):
        others = [other for other in courses if other != course and other not in needs[course]]
        needs[course].append(slip.read(needed, others))
    return needs


def _taken(needs: Mapping[int, Sequence[int]], slip: NoSlip) -> list[int]:
    taken: list[int] = []
    while True:
        waiting = [course for course in needs if course not in taken]
        free = next((course for course in waiting if _free(needs[course], taken, slip)), None)
        if free is None:
            return taken
        taken.append(free)


def _free(needed: Sequence[int], taken: Sequence[int], slip: NoSlip) -> bool:
    return slip.judged(set(needed) <= set(taken)) if needed else True


def _needs_text(course: int, needs: Mapping[int, Sequence[int]]) -> str:
    return f"{course} needs {listing(needs[course])}" if needs[course] else str(course)


def canonical_course_schedule(answer: str) -> str:
    return {"yes": "True", "no": "False"}[answer]


LOGIC = (
    Family("knights_knaves", "words", word_knights_knaves, derive_knights_knaves),
    Family("course_schedule", "yes_no", word_course_schedule, derive_course_schedule, canonical_course_schedule),
)
