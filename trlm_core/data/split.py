"""The split between training and evaluation: a question belongs to one side for ever, by its own hash."""

import hashlib

HELD_OUT_OF = 8  # one question in eight


def is_held_out(question: str) -> bool:
    """True for the questions that only evaluations may ask; the same in every recipe, stage and process."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8]) % HELD_OUT_OF == 0


def seed_of(seed: int, name: str) -> int:
    """A 31-bit seed of its own for each name under one recipe seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4]) >> 1
