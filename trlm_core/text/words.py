"""Words of a text and hashes of their n-grams, the same in every process: "It's 4 + 3." -> ["it's", "4", "3"]."""

import re
import zlib
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd: multiplication by it permutes the 64-bit integers


def words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits; punctuation parts them and is lost."""
    return _WORD.findall(text.lower())


def word_hashes(tokens: Sequence[str]) -> np.ndarray:
    """64 bits a word, in order."""
    told = [word.encode() for word in tokens]
    low, high = (np.fromiter(map(checksum, told), np.uint64, len(told)) for checksum in (zlib.crc32, zlib.adler32))
    return low | high << np.uint64(32)


def gram_hashes(hashes: np.ndarray, length: int) -> np.ndarray:
    """64-bit hashes of every run of `length` words, in order, from the words' hashes; empty where there are fewer words."""
    if len(hashes) < length:
        return np.empty(0, np.uint64)
    multiplier, windows = np.uint64(_MULTIPLIER), np.zeros(len(hashes) - length + 1, np.uint64)
    with np.errstate(over="ignore"):
        for place in range(length):  # Horner's rule: order counts
            windows = (windows ^ hashes[place : place + len(windows)]) * multiplier
            windows ^= windows >> np.uint64(29)
    return windows
