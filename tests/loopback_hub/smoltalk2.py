"""Small repositories under the real names and with the real schemas: smoltalk2's splits and the olmo preference set.

A row's text follows from its split and number alone. One of `s1k_1.1_think`, in JSON:
{"messages": [{"content": "s1k_1.1_think: what is 3 times 7?", "role": "user"}, {"content": "<think>\n...\n</think>\n\n...", "role": "assistant"}],
 "chat_template_kwargs": {"custom_instructions": "", "enable_thinking": true, "python_tools": [], "xml_tools": []}, "source": "s1k_1.1_think"}
"""

import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.loopback_hub.repositories import Content

SMOLTALK2 = "HuggingFaceTB/smoltalk2"
PREFERENCES = "scottgeng00/olmo-3-preference-mix-deltas_reasoning-yolo_scottmix-DECON-chfiltered"
SPLITS = {  # Mid comes first on the real card too: `datasets` resolves the first subset's files whichever is asked for
    "Mid": ["Llama_Nemotron_Post_Training_Dataset_reasoning_r1", "OpenThoughts3_1.2M"],
    "SFT": [
        "smoltalk_smollm3_smol_magpie_ultra_no_think",
        "smoltalk_smollm3_smol_summarize_no_think",
        "smoltalk_smollm3_smol_rewrite_no_think",
        "smoltalk_smollm3_systemchats_30k_no_think",
        "smoltalk_smollm3_explore_instruct_rewriting_no_think",
        "tulu_3_sft_personas_instruction_following_no_think",
        "smoltalk_smollm3_everyday_conversations_no_think",
        "multi_turn_reasoning_if_think",
        "aya_dataset_Qwen3_32B_think",
        "smoltalk_everyday_convs_reasoning_Qwen3_32B_think",
        "s1k_1.1_think",
    ],
}
HUBS_ORDER = ("content", "role")  # of a turn's fields in the Hub's files
KWARGS = pa.struct(
    [
        ("custom_instructions", pa.string()),
        ("enable_thinking", pa.bool_()),
        ("python_tools", pa.list_(pa.string())),
        ("xml_tools", pa.list_(pa.string())),
    ]
)


def turns(order: tuple[str, str] = HUBS_ORDER) -> pa.ListType:
    return pa.list_(pa.struct([(name, pa.string()) for name in order]))


def conversations(order: tuple[str, str] = HUBS_ORDER) -> pa.Schema:
    return pa.schema([("messages", turns(order)), ("chat_template_kwargs", KWARGS), ("source", pa.string())])


SFT = conversations()
BARE_MID = pa.schema([SFT.field("messages"), SFT.field("source")])  # what the card of the real repository says of Mid
PAIRS = pa.schema(
    [
        ("chosen", turns()),
        ("rejected", turns()),
        ("dataset", pa.string()),
        ("prompt", pa.string()),
        ("category", pa.string()),
        ("prompt_id", pa.string()),
    ]
)


def smoltalk2(
    rows: int = 40,
    row_group: int = 10,
    files: int = 2,
    counts: Mapping[str, int] | None = None,
    sft: pa.Schema = SFT,
    mid: pa.Schema = SFT,
    checksums: bool = True,
) -> dict[str, Content]:
    """Files of the repository: so many rows in each split, or in those named."""
    made: dict[str, Content] = {}
    for subset, schema in (("Mid", mid), ("SFT", sft)):
        for split in SPLITS[subset]:
            told = [conversation_row(split, number) for number in range((counts or {}).get(split, rows))]
            made |= parquet_files(f"{subset}/{split}", told, schema, row_group, files, checksums)
    configs = {subset: {split: f"{subset}/{split}-*" for split in splits} for subset, splits in SPLITS.items()}
    return {"README.md": card(configs, terms="apache-2.0"), **made}


def preferences(rows: int = 40, row_group: int = 10, files: int = 2, checksums: bool = True) -> dict[str, Content]:
    made = parquet_files("data/train", [pair_row(number) for number in range(rows)], PAIRS, row_group, files, checksums)
    return {"README.md": card({"default": {"train": "data/train-*"}}, terms="odc-by"), **made}


def conversation_row(split: str, number: int) -> dict[str, Any]:
    reply = f"The answer of {split} to {number} is {number * 7}."
    thinks = not split.endswith("no_think")
    if thinks:
        reply = f"<think>\nI multiply {number} by 7 and get {number * 7}.\n</think>\n\n{reply}"
    turns = [{"role": "user", "content": f"{split}: what is {number} times 7?"}, {"role": "assistant", "content": reply}]
    kwargs = {"custom_instructions": "", "enable_thinking": thinks, "python_tools": [], "xml_tools": []}
    return {"messages": turns, "chat_template_kwargs": kwargs, "source": split.split("_no_think")[0]}


def pair_row(number: int) -> dict[str, Any]:
    question = {"role": "user", "content": f"What is {number} plus 5?"}
    chosen, rejected = ([question, {"role": "assistant", "content": f"It is {number + more}."}] for more in (5, 6))
    rest = {"dataset": "olmo-mix", "prompt": question["content"], "category": "math", "prompt_id": f"id-{number}"}
    return {"chosen": chosen, "rejected": rejected, **rest}


def parquet_files(
    stem: str, rows: list[dict[str, Any]], schema: pa.Schema, row_group: int, files: int, checksums: bool = True
) -> dict[str, Content]:
    """`stem-00000-of-00002.parquet`: the rows in order, parted into files and row groups; a page has a checksum or not."""
    per_file = -(-len(rows) // files)
    return {
        f"{stem}-{number:05d}-of-{files:05d}.parquet": parquet(
            pa.Table.from_pylist(rows[number * per_file : (number + 1) * per_file], schema=schema), row_group, checksums
        )
        for number in range(files)
    }


def parquet(table: pa.Table, row_group: int, checksums: bool = True) -> bytes:
    written = io.BytesIO()
    pq.write_table(table, written, row_group_size=row_group, compression="snappy", write_page_checksum=checksums)
    return written.getvalue()


def card(configs: Mapping[str, Mapping[str, str]], terms: str) -> bytes:
    """README.md: `card({"SFT": {"s1k_1.1_think": "SFT/s1k_1.1_think-*"}}, terms="apache-2.0")`."""
    listed = [
        {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for config, splits in configs.items()
    ]
    told = {"license": terms, "language": ["en"], "configs": listed}
    return f"---\n{yaml.safe_dump(told, sort_keys=False)}---\n# A dataset\n".encode()
