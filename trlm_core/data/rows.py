"""Rows of a blend and their Arrow schemas.

{"messages": [{"role": "user", "content": "What is 4 + 3?"}, {"role": "assistant", "content": "7"}], "source": "chain_sum-answer",
 "_source_dataset": "reasoning-gym", "_source_subset": "chain_sum", "_source_split": "answer", "_source_row": 17}
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from trlm_core.recipes.schema import Stage

Row = dict[str, Any]

MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string(), nullable=False), pa.field("content", pa.string(), nullable=False)]))
PROVENANCE = [
    pa.field("source", pa.string()),
    pa.field("_source_dataset", pa.string()),
    pa.field("_source_subset", pa.string()),
    pa.field("_source_split", pa.string()),
    pa.field("_source_row", pa.int64()),
]
CONVERSATIONS = ("messages", "chosen", "rejected")  # columns that hold one
CONVERSATION = pa.schema([pa.field("messages", MESSAGES), *PROVENANCE])
PREFERENCE = pa.schema([pa.field("chosen", MESSAGES), pa.field("rejected", MESSAGES), *PROVENANCE])
FAULTY_PREFERENCE = pa.schema([pa.field("chosen", MESSAGES), pa.field("rejected", MESSAGES), pa.field("fault", pa.string()), *PROVENANCE])


def schema_of(stage: Stage) -> pa.Schema:
    """Of a stage's blend and of each of its sources."""
    if stage.training.trainer == "sft":
        return CONVERSATION
    return FAULTY_PREFERENCE if stage.blend.faults else PREFERENCE


def conversation(question: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def with_provenance(row: Row, *, source: str, dataset: str, subset: str | None, split: str, index: int) -> Row:
    return {
        **row,
        "source": row.get("source") or source,
        "_source_dataset": dataset,
        "_source_subset": subset or "",
        "_source_split": split,
        "_source_row": index,
    }


def table(rows: Iterable[Row], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema)
