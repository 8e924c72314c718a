"""The questions of an evaluation benchmark, read once into the store, so that no training row contains one. `["Natalia sold ...", ...]`"""

import functools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.contamination import BenchmarkGrams
from trlm_core.data.errors import SourceError
from trlm_core.data.hub import split_files, subsets_of
from trlm_core.data.split_files import parts_of
from trlm_core.recipes.schema import Benchmark, Contamination
from trlm_core.text.benchmark_texts import question_texts

QUESTIONS = "questions.json"
EVERY_SUBSET = "*"
_guard = threading.Lock()


def benchmark_spec(benchmark: Benchmark) -> Spec:
    identity = {"made_by": "benchmarks/1", "benchmark": benchmark.model_dump(mode="json")}
    return Spec("datasets", "benchmarks", benchmark.name, identity, {})


def grams_of(store: Store, contamination: Contamination) -> BenchmarkGrams:
    """Every benchmark's questions as n-grams, once for all sources of a process. Raises SourceError."""
    with _guard:
        return _grams(store, contamination.model_dump_json())


@functools.lru_cache(maxsize=1)
def _grams(store: Store, told: str) -> BenchmarkGrams:
    contamination = Contamination.model_validate_json(told)
    texts = {benchmark.name: _questions(store, benchmark) for benchmark in contamination.benchmarks}
    return BenchmarkGrams.of(texts, contamination.ngram, contamination.min_overlap)


def _questions(store: Store, benchmark: Benchmark) -> list[str]:
    def build(folder: Path) -> dict[str, Any]:
        questions = list(_read(benchmark))
        if not questions:
            raise SourceError(f"benchmark {benchmark.name}: wanted questions, got an empty split")
        (folder / QUESTIONS).write_text(json.dumps(questions, ensure_ascii=False, indent=0))
        return {"questions": len(questions)}

    return json.loads((store.folder(store.make(benchmark_spec(benchmark), build)) / QUESTIONS).read_text())


def _read(benchmark: Benchmark) -> Iterator[str]:
    every = benchmark.subset == EVERY_SUBSET
    for subset in subsets_of(benchmark.repo, benchmark.revision) if every else [benchmark.subset]:
        files = split_files(benchmark.repo, subset, benchmark.split, benchmark.revision)
        for part in parts_of(files.paths, files.format):
            if absent := sorted(set(benchmark.columns) - set(part.file.schema.names)):
                raise SourceError(
                    f"benchmark {benchmark.name}: wanted the columns {', '.join(absent)}, it has {', '.join(part.file.schema.names)}"
                )
            for batch in part.batches(benchmark.columns):
                yield from question_texts(batch.to_pylist(), benchmark.columns)
