"""Small repositories under the real names and with the real schemas: smoltalk2's splits and the olmo preference set."""

import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.loopback_hub.repositories import Content

SMOLTALK2 = "HuggingFaceTB/smoltalk2"
PREFERENCES = "scottgeng00/olmo-3-preference-mix-deltas_reasoning-yolo_scottmix-DECON-chfiltered"
SPLITS = {
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
    "Mid": ["Llama_Nemotron_Post_Training_Dataset_reasoning_r1", "OpenThoughts3_1.2M"],
}
TURN = pa.struct([("content", pa.string()), ("role", pa.string())])  # the Hub's order
KWARGS = pa.struct(
    [
        ("custom_instructions", pa.string()),
        ("enable_thinking", pa.bool_()),
        ("python_tools", pa.list_(pa.string())),
        ("xml_tools", pa.list_(pa.string())),
    ]
)
SFT = pa.schema([("messages", pa.list_(TURN)), ("chat_template_kwargs", KWARGS), ("source", pa.string())])
PAIRS = pa.schema(
    [
        ("chosen", pa.list_(TURN)),
        ("rejected", pa.list_(TURN)),
        ("dataset", pa.string()),
        ("prompt", pa.string()),
        ("category", pa.string()),
        ("prompt_id", pa.string()),
    ]
)


def smoltalk2(rows: int = 40, row_group: int = 10, files: int = 2, counts: Mapping[str, int] | None = None) -> dict[str, Content]:
    """Files of the repository: so many rows in each split, or in those named."""
    made: dict[str, Content] = {}
    configs = []
    for subset, splits in SPLITS.items():
        data_files = [{"split": split, "path": f"{subset}/{split}-*.parquet"} for split in splits]
        configs.append({"config_name": subset, "data_files": data_files})
        for split in splits:
            told = [conversation_row(split, number) for number in range((counts or {}).get(split, rows))]
            made |= parquet_files(f"{subset}/{split}", told, SFT, row_group, files)
    return {"README.md": card(configs, terms="apache-2.0"), **made}


def preferences(rows: int = 40, row_group: int = 10, files: int = 2) -> dict[str, Content]:
    told = [pair_row(number) for number in range(rows)]
    configs = [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}]
    return {"README.md": card(configs, terms="odc-by"), **parquet_files("data/train", told, PAIRS, row_group, files)}


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


def parquet_files(stem: str, rows: list[dict[str, Any]], schema: pa.Schema, row_group: int, files: int) -> dict[str, Content]:
    """`stem-00000-of-00002.parquet`: the rows in order, parted into files and row groups."""
    per_file = -(-len(rows) // files)
    return {
        f"{stem}-{number:05d}-of-{files:05d}.parquet": parquet(
            pa.Table.from_pylist(rows[number * per_file : (number + 1) * per_file], schema=schema), row_group
        )
        for number in range(files)
    }


def parquet(table: pa.Table, row_group: int) -> bytes:
    written = io.BytesIO()
    pq.write_table(table, written, row_group_size=row_group, compression="snappy", write_page_checksum=True)
    return written.getvalue()


def card(configs: list[dict[str, Any]], terms: str) -> bytes:
    import yaml

    return f"---\n{yaml.safe_dump({'license': terms, 'language': ['en'], 'configs': configs}, sort_keys=False)}---\n# A dataset\n".encode()
