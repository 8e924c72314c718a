"""Everyday dialogs of chatterbot-corpus: ("What are your hobbies?", "Playing soccer, painting, and writing ...")."""

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

import yaml

# They speak for a robot, or of feelings, persons and parties that a model should not claim as its own.
UNWANTED = frozenset({"ai", "botprofile", "emotion", "gossip", "politics", "psychology"})
LONGEST = 200  # characters of a question or an answer
CODE_FENCE = "```"


def everyday_dialogs() -> list[tuple[str, str]]:
    """Distinct pairs of question and answer: the first two turns of each dialog, by file name and place in the file."""
    pairs = (_pair(turns) for file in _subject_files() for turns in _dialogs(file))
    return list(dict.fromkeys(pair for pair in pairs if _usable(pair)))


def _subject_files() -> list[Traversable]:
    folder = files("chatterbot_corpus") / "data" / "english"
    subjects = [file for file in folder.iterdir() if file.name.endswith(".yml")]
    return sorted((file for file in subjects if _subject(file) not in UNWANTED), key=_subject)


def _subject(file: Traversable) -> str:
    return file.name.removesuffix(".yml")


def _dialogs(file: Traversable) -> Iterator[list[str]]:
    yield from yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]


def _pair(turns: list[str]) -> tuple[str, str]:
    question, answer, *_ = (" ".join(str(turn).split()) for turn in turns)
    return question, answer


def _usable(pair: tuple[str, str]) -> bool:
    """Neither empty nor long, and no code, whose lines were just joined."""
    return all(0 < len(text) <= LONGEST and CODE_FENCE not in text for text in pair)
