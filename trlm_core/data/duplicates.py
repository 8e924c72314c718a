"""Duplicates: rows that say what a row before them says, word for word or nearly."""

import hashlib
import json

from trlm_core.data.filters import sides
from trlm_core.data.rows import Row
from trlm_core.recipes.schema import Filters


class Seen:
    """Remembers the rows that were kept. A row takes about 150 bytes for word-for-word duplicates, 5 kB for near ones."""

    def __init__(self, filters: Filters) -> None:
        self._exact: set[bytes] | None = set() if filters.exact_duplicates else None
        self._near = None
        if filters.near_duplicates is not None:
            from trlm_core.data.near_duplicates import Near  # scipy: half a second that no other blend need spend

            self._near = Near(filters.near_duplicates)

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
