"""Thoughts: `<think>\\n4 + 3 = 7.\\n</think>\\n7` written, parsed and checked."""

import re
from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"
BLANKS = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())  # what `\s` matches and strip() takes away
_REPLY = re.compile(rf"\s*{OPEN}(?P<thought>.*?){CLOSE}(?P<answer>.*)\Z", re.DOTALL)


@dataclass(frozen=True)
class Reply:
    thought: str
    answer: str


def with_thought(thought: str, answer: str) -> str:
    return f"{OPEN}\n{thought}\n{CLOSE}\n{answer}"


def parse_reply(text: str) -> Reply | None:
    """The thought and the answer of a well-formed reply: one closed thought at the start, then an answer; None otherwise."""
    match = _REPLY.match(text)
    if match is None or text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return None
    reply = Reply(match["thought"].strip(), match["answer"].strip())
    return reply if reply.thought and reply.answer else None


def spoken(text: str) -> str:
    """What a reply says after its last closed thought; the whole text where no thought was closed."""
    return text.rsplit(CLOSE, 1)[-1].strip()
