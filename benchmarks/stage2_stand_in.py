"""A generated stand-in of stage 2's sources: six splits of smoltalk2's schema, 91,000 rows, about 500 MB of text, for 78,000 to be taken.

    python benchmarks/stage2_stand_in.py FOLDER [--scale 4]

Words are drawn, seeded, from an English text that reasoning-gym carries, and lengths of thoughts are log-normal: a tokenizer sees what it
sees in English; a compressor sees somewhat less order.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from reasoning_gym.data import read_data_file

REPO = "HuggingFaceTB/smoltalk2"
TAKEN = {  # split -> rows that stage 2 takes; a seventh more lies there
    ("Mid", "Llama_Nemotron_Post_Training_Dataset_reasoning_r1"): 40_200,
    ("Mid", "OpenThoughts3_1.2M"): 20_000,
    ("SFT", "multi_turn_reasoning_if_think"): 10_000,
    ("SFT", "aya_dataset_Qwen3_32B_think"): 5_000,
    ("SFT", "smoltalk_everyday_convs_reasoning_Qwen3_32B_think"): 2_000,
    ("SFT", "s1k_1.1_think"): 800,
}
ROWS = 91_000
ROW_GROUP = 1_000
ROWS_PER_FILE = 12_000
MEAN_WORDS = 900  # of a row
SPREAD = 0.8  # of the logarithm of a thought's length
TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
KWARGS = pa.struct(
    [
        ("custom_instructions", pa.string()),
        ("enable_thinking", pa.bool_()),
        ("python_tools", pa.list_(pa.string())),
        ("xml_tools", pa.list_(pa.string())),
    ]
)
SCHEMA = pa.schema([("messages", pa.list_(TURN)), ("chat_template_kwargs", KWARGS), ("source", pa.string())])


class Prose:
    """Endless seeded words of an English novel, as frequent as there."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._words = np.array(read_data_file("in_the_year_2889.txt").split(), dtype=object)

    def text(self, words: int) -> str:
        return " ".join(self._words[self._random.integers(0, len(self._words), words)])

    def thought_length(self) -> int:
        return int(self._random.lognormal(np.log(MEAN_WORDS) - SPREAD**2 / 2, SPREAD)) + 20


def write_stand_in(root: Path, scale: int = 1, seed: int = 7) -> Path:
    """Folder of the repository, as the Hub would hold it."""
    folder = root / REPO
    for number, ((subset, split), taken) in enumerate(TAKEN.items()):
        rows = scale * round(taken * ROWS / sum(TAKEN.values()))
        (folder / subset).mkdir(parents=True, exist_ok=True)
        _write_split(folder / subset, split, rows, Prose(seed + number))
    subsets = sorted({subset for subset, _ in TAKEN})
    configs = [{"config_name": subset, "data_files": _data_files(subset)} for subset in subsets]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'license': 'apache-2.0', 'language': ['en'], 'configs': configs})}---\n")
    return folder


def _data_files(subset: str) -> list[dict[str, str]]:
    return [{"split": split, "path": f"{subset}/{split}-*.parquet"} for each, split in TAKEN if each == subset]


def _write_split(folder: Path, split: str, rows: int, prose: Prose) -> None:
    files = -(-rows // ROWS_PER_FILE)
    for file in range(files):
        mine = min(ROWS_PER_FILE, rows - file * ROWS_PER_FILE)
        with pq.ParquetWriter(folder / f"{split}-{file:05d}-of-{files:05d}.parquet", SCHEMA, compression="snappy") as writer:
            for start in range(0, mine, ROW_GROUP):
                group = [_row(split, prose) for _ in range(min(ROW_GROUP, mine - start))]
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))


def _row(split: str, prose: Prose) -> dict[str, object]:
    reply = f"<think>\n{prose.text(prose.thought_length())}\n</think>\n\n{prose.text(40)}"
    turns = [{"role": "user", "content": prose.text(40)}, {"role": "assistant", "content": reply}]
    kwargs = {"custom_instructions": "", "enable_thinking": True, "python_tools": [], "xml_tools": []}
    return {"messages": turns, "chat_template_kwargs": kwargs, "source": split}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=int, default=1)
    asked = parser.parse_args()
    print(write_stand_in(asked.folder, asked.scale))
