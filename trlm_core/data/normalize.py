"""From a source's columns to rows of a blend, in Arrow: renamed, roles checked, every row with its place in the source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from trlm_core.data.errors import SourceError
from trlm_core.data.rows import CONVERSATIONS, MESSAGES
from trlm_core.recipes.schema import FileSource, HubSource

pc: Any = pyarrow.compute  # made at import, so no type checker knows its functions

ROLES = ("system", "user", "assistant")
PROMPT = "prompt"
TURNS = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))  # as they come: perhaps null

TakenFrom = HubSource | FileSource


@dataclass(frozen=True)
class Layout:
    """Which columns of the source become which of ours."""

    conversations: tuple[str, ...]  # ours: ("messages",) or ("chosen", "rejected")
    columns: tuple[str, ...]  # theirs, to read
    theirs: dict[str, str]  # ours -> theirs
    schema: pa.Schema  # of the blend's rows


def layout_of(source: TakenFrom, schema: pa.Schema, ours: pa.Schema) -> Layout:
    """Raises SourceError that names the column where the split lacks one, or has it in another type.

    A column to drop may be absent: smoltalk2 has `chat_template_kwargs` in some of its subsets only.
    """
    conversations = tuple(name for name in CONVERSATIONS if name in ours.names)
    if absent := sorted(set(source.rename) - set(schema.names)):
        raise SourceError(f"{source.name}: wanted the columns {', '.join(absent)} to rename, the split has {_told(schema)}")
    renamed = {ours: theirs for theirs, ours in source.rename.items()}
    theirs = {name: renamed.get(name, name) for name in (*conversations, "source", PROMPT)}
    kept = {ours: column for ours, column in theirs.items() if column in schema.names and column not in source.drop}
    if absent := [theirs[name] for name in conversations if name not in kept]:
        raise SourceError(f"{source.name}: wanted {', '.join(conversations)}, the split lacks {', '.join(absent)}; it has {_told(schema)}")
    for name, column in kept.items():
        _check_type(source.name, column, schema.field(column).type, is_text=name == "source", may_be_text=name == PROMPT)
    if "messages" in conversations:
        kept.pop(PROMPT, None)
    return Layout(conversations, tuple(kept.values()), kept, ours)


def normalized(source: TakenFrom, layout: Layout, batch: pa.RecordBatch, rows: np.ndarray) -> tuple[pa.Table, dict[str, int]]:
    """A table of the layout's schema, and how many rows were dropped for which reason. `rows`: their numbers in the split."""
    columns = {ours: batch[theirs] for ours, theirs in layout.theirs.items()}
    if PROMPT in columns:
        columns |= _with_prompt(columns.pop(PROMPT), {name: columns[name] for name in layout.conversations})
    keep, dropped = _sound([columns[name] for name in layout.conversations])
    if dropped:
        columns = {name: column.take(pa.array(keep)) for name, column in columns.items()}
    return _placed(source, layout, columns, rows[keep]), dropped


def place_of(source: TakenFrom) -> tuple[str, str, str]:
    """Dataset, subset and split, as every row tells them."""
    return (source.repo, source.subset or "", source.split) if isinstance(source, HubSource) else (source.address, "", source.format)


def _check_type(name: str, column: str, kind: pa.DataType, *, is_text: bool, may_be_text: bool) -> None:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    if text and (is_text or may_be_text):
        return
    if is_text or not _is_conversation(kind):
        wanted = "text" if is_text else "a list of {role: text, content: text}"
        raise SourceError(f"{name}: wanted the column {column} to be {wanted}, the split has {kind}")


def _is_conversation(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    return all(
        name in fields and (pa.types.is_string(fields[name]) or pa.types.is_large_string(fields[name])) for name in ("role", "content")
    )


def _placed(source: TakenFrom, layout: Layout, columns: dict[str, pa.Array], rows: np.ndarray) -> pa.Table:
    dataset, subset, split = (pa.repeat(pa.scalar(value), len(rows)) for value in place_of(source))
    made = {name: _conversation(columns[name]) for name in layout.conversations}
    made |= {"source": _named(columns.get("source"), source.name, len(rows)), "_source_row": pa.array(rows, pa.int64())}
    made |= {"_source_dataset": dataset, "_source_subset": subset, "_source_split": split}
    return pa.table([made.get(field.name, pa.nulls(len(rows), field.type)) for field in layout.schema], schema=layout.schema)


def _sound(conversations: Sequence[pa.ListArray]) -> tuple[np.ndarray, dict[str, int]]:
    """Numbers of the rows that have turns of known roles, and counts of the others by reason, each row under its first."""
    keep, dropped = np.ones(len(conversations[0]), bool), {}
    for conversation in conversations:
        for reason, hit in _faults(conversation):
            dropped[reason] = dropped.get(reason, 0) + int(keep[hit].sum())
            keep[hit] = False
    return np.flatnonzero(keep), {reason: count for reason, count in dropped.items() if count}


def _faults(conversation: pa.ListArray) -> list[tuple[str, np.ndarray]]:
    """Reason -> numbers of the rows that it hits."""
    flat, owners = conversation.flatten(), pc.list_parent_indices(conversation)
    role, content = pc.struct_field(flat, "role"), pc.struct_field(flat, "content")
    unknown = pc.and_(pc.is_valid(role), pc.invert(pc.is_in(role, pa.array(ROLES, role.type))))
    return [
        ("no_turns", np.flatnonzero(pc.fill_null(pc.equal(pc.list_value_length(conversation), 0), True))),
        ("null_turn", owners.filter(pc.or_(pc.is_null(role), pc.is_null(content))).to_numpy()),
        ("unknown_role", owners.filter(unknown).to_numpy()),
    ]


def _conversation(column: pa.ListArray) -> pa.ListArray:
    """As MESSAGES: role before content, nothing else."""
    flat = column.flatten()
    lengths = pc.list_value_length(column).to_numpy()
    turns = pa.StructArray.from_arrays(
        [pc.struct_field(flat, name).cast(pa.string()) for name in ("role", "content")], fields=list(MESSAGES.value_type)
    )
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), turns, type=MESSAGES)


def _with_prompt(prompt: pa.Array, conversations: dict[str, pa.Array]) -> dict[str, pa.Array]:
    """Replies that come apart from their prompt are put behind it, as TRL's implicit prompts want them."""
    told = [[{"role": "user", "content": each}] if isinstance(each, str) else each or [] for each in prompt.to_pylist()]
    return {
        name: pa.array([_behind(first, rest) for first, rest in zip(told, replies.to_pylist(), strict=True)], TURNS)
        for name, replies in conversations.items()
    }


def _behind(prompt: list[dict[str, str]], reply: list[dict[str, str]] | None) -> list[dict[str, str]]:
    reply = reply or []
    return reply if reply[: len(prompt)] == prompt else [*prompt, *reply]


def _named(column: pa.Array | None, name: str, rows: int) -> pa.Array:
    """The row's own source, or the split's name where it says none."""
    if column is None or pa.types.is_null(column.type):
        return pa.repeat(pa.scalar(name), rows)
    text = column.cast(pa.string())
    return pc.if_else(pc.fill_null(pc.equal(text, ""), True), pa.scalar(name), text)


def _told(schema: pa.Schema) -> str:
    return ", ".join(schema.names)
