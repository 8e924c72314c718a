"""Stage 2's blend row by row, as the report's own code makes it: `python benchmarks/blend_baseline.py SOURCES OUTPUT`.

SOURCES is a dataset's folder or, with HF_ENDPOINT, a repository. Every source is streamed with `datasets` down to its count; rows are dicts
that lose their dropped columns and get their provenance; every 5,000 are a parquet chunk, as that code has it for a blend of more than
50,000. The chunks are loaded, shuffled with seed 42 and saved. Ends with {"rows": 78000}.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, load_dataset

RECIPE = Path(__file__).parents[1] / "trlm_core" / "recipes" / "trlm-135m" / "recipe.yaml"
STAGE = "stage2_sft_think"
ROWS_PER_CHUNK = 5_000
SEED = 42

Row = dict[str, Any]


def stage_sources() -> list[dict[str, Any]]:
    """{"subset": "Mid", "split": "OpenThoughts3_1.2M", "num_examples": 20000, "drop": ["chat_template_kwargs"], ...}"""
    stages = {stage["name"]: stage for stage in yaml.safe_load(RECIPE.read_text())["stages"]}
    return stages[STAGE]["blend"]["sources"]


def rows_of(dataset: str, source: dict[str, Any]) -> Iterator[Row]:
    subset, split = source["subset"], source["split"]
    provenance = {"_source_dataset": dataset, "_source_subset": subset, "_source_split": split}
    for row in itertools.islice(load_dataset(dataset, subset, split=split, streaming=True), source["num_examples"]):
        for column in source["drop"]:
            row.pop(column, None)
        yield {**row, **provenance}


def write_chunks(rows: Iterable[Row], folder: Path) -> list[str]:
    """Paths of the chunks; the rows of one are held at a time."""
    coming, paths = iter(rows), []
    while chunk := list(itertools.islice(coming, ROWS_PER_CHUNK)):
        paths.append(str(folder / f"chunk-{len(paths)}.parquet"))
        Dataset.from_list(chunk).to_parquet(paths[-1])
    return paths


def blend(dataset: str, output: Path) -> int:
    """Write the blend; its rows."""
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        paths = write_chunks((row for source in stage_sources() for row in rows_of(dataset, source)), Path(folder))
        joined = load_dataset("parquet", data_files=paths, split="train")
        joined.shuffle(seed=SEED).save_to_disk(output)
        return joined.num_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    print(json.dumps({"rows": blend(arguments.sources, arguments.output)}))


if __name__ == "__main__":
    main()
