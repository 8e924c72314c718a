"""Near duplicates: MinHash over shingles of words (Broder 1997), looked up by locality-sensitive hashing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasketch import MinHashLSH
from datasketch.minhash import MinHash

from trlm_core.data.filters import sides, text_of
from trlm_core.data.rows import Row
from trlm_core.recipes.schema import NearDuplicates
from trlm_core.text.words import gram_hashes, word_hashes, words

SEED = 1  # of the permutations: the same rows are near duplicates in every blend


class Near:
    """Remembers the rows that are not near another."""

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
