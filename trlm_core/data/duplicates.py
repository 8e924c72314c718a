"""Duplicates: rows that say what a row before them says, word for word or nearly (MinHash over shingles of words, Broder 1997)."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasketch import MinHashLSH
from datasketch.minhash import MinHash

from trlm_core.data.filters import sides, text_of
from trlm_core.data.rows import Row
from trlm_core.recipes.schema import Filters, NearDuplicates
from trlm_core.text.words import gram_hashes, word_hashes, words

SEED = 1  # of the permutations: the same rows are near duplicates in every blend


class Seen:
    """Remembers the rows that were kept. A row takes about 150 bytes for word-for-word duplicates, 5 kB for near ones."""

    def __init__(self, filters: Filters) -> None:
        self._exact: set[bytes] | None = set() if filters.exact_duplicates else None
        self._near = _Near(filters.near_duplicates) if filters.near_duplicates is not None else None

    def reason(self, row: Row) -> str | None:
        """Why the row is kept out; a row without a reason is remembered."""
        digest = conversation_hash(row)
        if self._exact is not None and digest in self._exact:
            return "exact_duplicate"
        if self._near is not None and self._near.knows(row):
            return "near_duplicate"
        if self._exact is not None:
            self._exact.add(digest)
        return None


def conversation_hash(row: Row) -> bytes:
    """Of roles and contents as they are, every side of a pair."""
    told = json.dumps([[[turn["role"], turn["content"]] for turn in side] for side in sides(row)], ensure_ascii=False)
    return hashlib.blake2b(told.encode(), digest_size=16).digest()


class _Near:
    def __init__(self, settings: NearDuplicates) -> None:
        self._settings, self._rows = settings, 0
        self._empty = MinHash(num_perm=settings.permutations, seed=SEED, hashfunc=int, scheme="affine64")  # shingles are hashes already
        self._index = MinHashLSH(threshold=settings.threshold, num_perm=settings.permutations)
        self._signatures: dict[Any, np.ndarray] = {}

    def knows(self, row: Row) -> bool:
        told = words("\n".join(text_of(side) for side in sides(row)))
        if not told:
            return False  # nothing to compare: two emoji are not one
        signature = self._signature(told)
        for candidate in self._index.query(signature):
            if np.mean(self._signatures[candidate] == signature.hashvalues) >= self._settings.threshold:
                return True
        self._index.insert(self._rows, signature, check_duplication=False)
        self._signatures[self._rows] = signature.hashvalues
        self._rows += 1
        return False

    def _signature(self, told: Sequence[str]) -> MinHash:
        shingles = gram_hashes(word_hashes(told), min(self._settings.shingle, len(told)))
        signature = self._empty.copy()
        signature.update_batch(np.unique(shingles).tolist())
        return signature
