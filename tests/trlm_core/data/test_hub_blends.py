"""A blend from the loopback Hub, through the real clients in a process of its own: what it leaves without a fault, and with each."""

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.loopback_hub.blends import command, copied_store, environment, hashes, store_with_base, told, write_recipe
from tests.loopback_hub.faults import Fault, Request, calls, data
from tests.loopback_hub.gsm8k import BENCHMARK, GSM8K, QUESTIONS, gsm8k
from tests.loopback_hub.server import LoopbackHub
from tests.loopback_hub.smoltalk2 import PREFERENCES, SFT, SMOLTALK2, conversation_row, parquet_files, preferences, smoltalk2
from trlm_core.recipes.load import load_recipe

ROWS = 40  # of every split
COUNT = 25  # that are taken of it
STAGES = ("stage1_sft", "stage2_sft_think", "stage3_dpo")
THINK = "s1k_1.1_think"
CONTAMINATION = {"ngram": 8, "min_overlap": 0.5, "benchmarks": [BENCHMARK]}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        server.repositories.made(SMOLTALK2).commit(smoltalk2(ROWS))
        server.repositories.made(PREFERENCES).commit(preferences(ROWS))
        yield server


@pytest.fixture
def recipe_file(hub: LoopbackHub, tiny_base: Path, tmp_path: Path) -> Callable[..., Path]:
    """The report's recipe with counts and base shrunk, pinned to the Hub's commits, as a file."""

    def write(name: str = "recipe", variant: str = "report", **changes: Any) -> Path:
        def shrink(tree: dict[str, Any]) -> None:
            for stage in tree["stages"]:
                stage["blend"] |= {"parquet_from": 100}
                for source in stage["blend"]["sources"]:
                    source |= {"num_examples": COUNT, "reported_share": None, **changes.get("source", {})}
                if stage["blend"]["filters"] is not None:
                    stage["blend"]["filters"] |= {"contamination": None, **changes.get("filters", {})}

        return write_recipe(tmp_path / f"{name}.yaml", hub, tiny_base, shrink, variant)

    return write


@pytest.fixture(scope="module")
def base_store(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_with_base(tmp_path_factory.mktemp("base") / "store", tiny_base)


@pytest.fixture
def blend(hub: LoopbackHub, base_store: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(recipe: Path, stage: str = "stage2_sft_think", store: str = "store", **changed: str) -> dict[str, Any]:
        asked = command(recipe, stage, copied_store(base_store, tmp_path / store))
        done = subprocess.run(asked, capture_output=True, text=True, timeout=120, env=environment(hub, tmp_path / "hf") | changed)
        assert done.stdout, done.stderr[-3000:]
        return {**told(done.stdout), "log": done.stderr}

    return run


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_s_blend_takes_the_first_rows_of_every_split(hub: LoopbackHub, recipe_file: Callable, blend: Callable, stage: str):
    recipe = load_recipe(str(recipe_file()))
    made = blend(recipe_file(), stage)
    rows = _rows(made, stage)
    for source in recipe.stage(stage).blend.sources:
        assert source.kind == "hub"
        mine = sorted(row["_source_row"] for row in rows if row["_source_split"] == source.split)
        assert mine == list(range(COUNT)), source.split
    assert len(rows) == COUNT * len(recipe.stage(stage).blend.sources)
    assert [row["_source_row"] for row in rows] != sorted(row["_source_row"] for row in rows), "shuffled"


def test_every_row_is_the_split_s_own_row_at_its_number(recipe_file: Callable, blend: Callable):
    for row in _rows(blend(recipe_file()), "stage2_sft_think"):
        wanted = conversation_row(row["_source_split"], row["_source_row"])
        assert (row["messages"], row["source"]) == (wanted["messages"], wanted["source"])


def test_a_dropped_column_and_a_row_group_behind_the_cap_are_never_asked_for(hub: LoopbackHub, recipe_file: Callable, blend: Callable):
    blend(recipe_file(), "stage3_dpo")
    read = [request for request in hub.data_requests() if request.path.endswith("train-00001-of-00002.parquet")]
    first = [request for request in hub.data_requests() if request.path.endswith("train-00000-of-00002.parquet")]
    assert len(first) == 1 + 2, "the footer, and each row group's columns in one request"
    assert len(read) == 1 + 1, "25 rows end in the second file's first row group"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("429 with Retry-After", Fault(data(), times=2, status=429, headers={"Retry-After": "0"})),
        ("500, 502, 503", Fault(data(), times=3, status=503)),
        ("a server error while listing", Fault(calls("/tree/"), times=2, status=502)),
        ("a connection reset in mid-body", Fault(data(), times=2, body="reset", at=200)),
        ("a body shorter than announced", Fault(data(), times=2, body="short", at=200)),
        ("a body shorter than asked", Fault(data(), times=2, body="fewer", at=50)),
        ("a whole file for a range", Fault(data(), times=2, after=1, body="whole")),
        ("a stalled connection", Fault(data(), times=1, body="stalled", at=10, seconds=4)),
        ("a page damaged on the way", Fault(data(f"{THINK}-00000-of-00002.parquet"), times=1, after=1, body="damaged", at=200)),
    ],
)
def test_a_passing_fault_leaves_the_same_bytes(hub: LoopbackHub, recipe_file: Callable, blend: Callable, name: str, fault: Fault):
    wanted = _bytes(blend(recipe_file(), store="undisturbed"))
    times, fault.times = fault.times, fault.times
    hub.faults.append(fault)
    assert _bytes(blend(recipe_file(), store="disturbed", HF_HUB_DOWNLOAD_TIMEOUT="2")) == wanted
    assert fault.times == 0 < times, f"{name} happened"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Fault(data(f"{THINK}-00000-of-00002.parquet"), times=99, after=1, body="damaged", at=200),
            ["s1k_1.1_think-00000", "wanted rows", "damaged"],
        ),
        (
            Fault(data(f"{THINK}-00000-of-00002.parquet"), times=999, body="fewer", at=50),
            ["s1k_1.1_think-00000", "wanted its bytes", "bytes, got"],
        ),
        (Fault(calls("/resolve/"), times=999, status=401), ["wanted access", "401", "HF_TOKEN"]),
        (Fault(calls("/resolve/"), times=999, status=403), ["wanted access", "403", "HF_TOKEN"]),
        (Fault(data(f"{THINK}-00001-of-00002.parquet"), times=999, status=404), ["s1k_1.1_think-00001", "404"]),
    ],
)
def test_a_lasting_fault_is_one_clear_error_and_leaves_no_blend(
    hub: LoopbackHub, recipe_file: Callable, blend: Callable, tmp_path: Path, fault: Fault, said: list[str]
):
    hub.faults.append(fault)
    made = blend(recipe_file())
    assert all(words in made.get("error", "") for words in said), made
    assert not list((tmp_path / "store").glob("datasets/trlm-135m/*/*/manifest.json"))
    hub.faults.clear()
    assert _bytes(blend(recipe_file())) == _bytes(blend(recipe_file(), store="undisturbed")), "and the rerun goes on from there"


def test_a_commit_that_arrives_between_listing_and_reading_changes_nothing(hub: LoopbackHub, recipe_file: Callable, blend: Callable):
    recipe = recipe_file()
    wanted = _bytes(blend(recipe, store="undisturbed"))
    other = {path: content for path, content in smoltalk2(ROWS, counts={THINK: 7}).items() if THINK in path}
    hub.faults.append(Fault(data(), first=lambda: hub.repositories.made(SMOLTALK2).commit(other)))
    assert _bytes(blend(recipe, store="disturbed")) == wanted


@pytest.mark.parametrize(
    ("column", "schema", "said"),
    [
        (
            "absent",
            pa.schema([SFT.field("chat_template_kwargs"), SFT.field("source")]),
            ["wanted messages", "lacks messages", "chat_template_kwargs, source"],
        ),
        (
            "retyped",
            SFT.set(0, pa.field("messages", pa.string())),
            ["the column messages", "list of {role: text, content: text}", "string"],
        ),
    ],
)
def test_a_missing_or_retyped_column_is_named(
    hub: LoopbackHub, recipe_file: Callable, blend: Callable, column: str, schema: pa.Schema, said: list[str]
):
    rows = [
        {**conversation_row(THINK, number), "messages": "hm"} if column == "retyped" else conversation_row(THINK, number)
        for number in range(ROWS)
    ]
    hub.repositories.made(SMOLTALK2).commit(parquet_files(f"SFT/{THINK}", rows, schema, 10, 2))
    error = blend(recipe_file())["error"]
    assert all(words in error for words in [THINK.lower(), *said]), error


def test_a_column_to_drop_may_be_absent(hub: LoopbackHub, recipe_file: Callable, blend: Callable):
    rows = [conversation_row(THINK, number) for number in range(ROWS)]
    bare = pa.schema([SFT.field("messages"), SFT.field("source")])
    hub.repositories.made(SMOLTALK2).commit(parquet_files(f"SFT/{THINK}", rows, bare, 10, 2))
    assert blend(recipe_file())["counts"]["sources"]["s1k_1.1_think"]["train"] == COUNT


def test_a_vanished_split_is_named_with_those_there_are(hub: LoopbackHub, recipe_file: Callable, blend: Callable):
    readme = smoltalk2(1)["README.md"]
    assert isinstance(readme, bytes)
    hub.repositories.made(SMOLTALK2).commit({"README.md": readme.replace(f"split: {THINK}".encode(), b"split: gone")})
    error = blend(recipe_file())["error"]
    assert f"wanted the split {THINK}, got " in error
    assert "gone" in error


def test_every_short_source_is_listed_before_any_row_is_read(hub: LoopbackHub, recipe_file: Callable, blend: Callable, tmp_path: Path):
    hub.repositories.made(SMOLTALK2).commit(smoltalk2(ROWS, counts={THINK: 11, "aya_dataset_Qwen3_32B_think": 12}))
    error = blend(recipe_file())["error"]
    assert f"s1k_1.1_think: wanted {COUNT} examples, the source has 11" in error
    assert f"aya_dataset_qwen3_32b_think: wanted {COUNT} examples, the source has 12" in error
    assert not list((tmp_path / "store").glob("datasets/*/*/*"))
    made = blend(recipe_file("short", source={"allow_short": True}))
    assert made["counts"]["sources"]["s1k_1.1_think"]["train"] == 11


@pytest.mark.parametrize("sampling", ["row_groups", "reservoir"])
def test_a_drawn_sample_follows_its_seed_alone(recipe_file: Callable, blend: Callable, sampling: str):
    recipe = recipe_file(sampling, source={"sampling": sampling})
    first, again = blend(recipe), blend(recipe, store="again")
    assert _bytes(first) == _bytes(again)
    taken = sorted(row["_source_row"] for row in _rows(first, "stage2_sft_think") if row["_source_split"] == THINK)
    assert len(set(taken)) == COUNT
    assert taken != list(range(COUNT))
    groups = {row // 10 for row in taken}
    assert len(groups) == (3 if sampling == "row_groups" else 4)


def test_a_private_repository_s_token_reaches_nothing_that_is_kept(
    hub: LoopbackHub, recipe_file: Callable, blend: Callable, tmp_path: Path
):
    secret = "hf_" + "s3cr3t" * 5
    hub.repositories.made(SMOLTALK2).token = secret
    refused = blend(recipe_file())
    assert "HF_TOKEN" in refused["error"] or "cannot be accessed" in refused["error"]
    made = blend(recipe_file(), HF_TOKEN=secret)
    assert made["counts"]["rows"] == COUNT * 6
    assert secret not in made["log"]
    kept = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not [path for path in kept if secret.encode() in path.read_bytes()]


def test_the_improved_variant_filters_and_tops_up_from_the_same_source(hub: LoopbackHub, recipe_file: Callable, blend: Callable):
    rows = [conversation_row(THINK, number) for number in range(ROWS)]
    rows[3]["messages"] = rows[2]["messages"]  # said twice
    rows[5]["messages"][1]["content"] = "no thought at all"
    rows[6]["messages"][0]["content"] = "  "
    rows[7]["messages"] = [*rows[7]["messages"], {"role": "user", "content": "and?"}]
    hub.repositories.made(SMOLTALK2).commit(parquet_files(f"SFT/{THINK}", rows, SFT, 10, 2))
    made = blend(recipe_file(variant="improved", filters={"near_duplicates": None}))
    counts = made["counts"]["sources"]["s1k_1.1_think"]
    assert counts["train"] == COUNT
    assert counts["dropped"] == {"exact_duplicate": 1, "malformed_thought": 1, "empty_turn": 1, "turns_do_not_alternate": 1}
    taken = sorted(row["_source_row"] for row in _rows(made, "stage2_sft_think") if row["_source_split"] == THINK)
    assert taken == [0, 1, 2, 4, *range(8, 29)]
    folder = next(Path(made["folder"]).parents[2].glob("sources/s1k_1.1_think/*"))
    assert [json.loads(line)["reason"] for line in (folder / "dropped.jsonl").read_text().splitlines()] == [
        "exact_duplicate", "malformed_thought", "empty_turn", "turns_do_not_alternate",
    ]  # fmt: skip


def test_a_duplicate_of_another_source_is_replaced_by_a_spare_row(hub: LoopbackHub, recipe_file: Callable, blend: Callable):
    rows = [conversation_row(THINK, number) for number in range(ROWS)]
    rows[4]["messages"] = conversation_row("OpenThoughts3_1.2M", 4)["messages"]
    hub.repositories.made(SMOLTALK2).commit(parquet_files(f"SFT/{THINK}", rows, SFT, 10, 2))
    made = blend(recipe_file(variant="improved", filters={"near_duplicates": None}))
    counts = made["counts"]["sources"]["s1k_1.1_think"]
    assert (counts["train"], counts["dropped"], counts["spare"]) == (COUNT, {"duplicate_of_another_source": 1}, 2)
    taken = sorted(row["_source_row"] for row in _rows(made, "stage2_sft_think") if row["_source_split"] == THINK)
    assert taken == [row for row in range(COUNT + 1) if row != 4]


def test_a_row_with_a_benchmark_s_question_gives_way_to_another_of_its_source(hub: LoopbackHub, recipe_file: Callable, blend: Callable):
    rows = [conversation_row(THINK, number) for number in range(ROWS)]
    rows[4]["messages"][0]["content"] = f"Think it through, please: {QUESTIONS[0].upper()}"
    rows[9]["messages"][0]["content"] = " ".join(QUESTIONS[1].split()[:8])  # a third of that question: too little
    hub.repositories.made(SMOLTALK2).commit(parquet_files(f"SFT/{THINK}", rows, SFT, 10, 2))
    hub.repositories.made(GSM8K).commit(gsm8k())
    made = blend(recipe_file(variant="improved", filters={"near_duplicates": None, "contamination": CONTAMINATION}))
    counts = made["counts"]["sources"]
    assert counts.pop("s1k_1.1_think")["dropped"] == {"contaminated": 1}
    assert all(count["dropped"] == {} for count in counts.values()), "nothing else is dropped"
    taken = sorted(row["_source_row"] for row in _rows(made, "stage2_sft_think") if row["_source_split"] == THINK)
    assert taken == [row for row in range(COUNT + 1) if row != 4]
    (line,) = next(Path(made["folder"]).parents[2].glob("sources/s1k_1.1_think/*/dropped.jsonl")).read_text().splitlines()
    dropped = json.loads(line)
    assert (dropped["reason"], dropped["question"], dropped["_source_row"]) == ("contaminated", "gsm8k-main-test 0", 4)


def _refused(hub: LoopbackHub) -> None:
    hub.faults.append(Fault(calls(GSM8K), times=999, status=401))


def _without_the_column(hub: LoopbackHub) -> None:
    bare = pa.schema([("answer", pa.string())])
    hub.repositories.made(GSM8K).commit(parquet_files("main/test", [{"answer": "#### 48"}], bare, row_group=10, files=1))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_refused, [GSM8K, "wanted access", "401", "HF_TOKEN"]),
        (_without_the_column, ["benchmark gsm8k-main-test", "wanted the columns question", "it has answer"]),
    ],
)
def test_a_benchmark_s_fault_is_one_clear_error_before_any_row_is_read(
    hub: LoopbackHub, recipe_file: Callable, blend: Callable, tmp_path: Path, fault: Callable[[LoopbackHub], None], said: list[str]
):
    hub.repositories.made(GSM8K).commit(gsm8k())
    fault(hub)
    error = blend(recipe_file(variant="improved", filters={"contamination": CONTAMINATION})).get("error", "")
    assert all(words in error for words in said), error
    asked = Counter((request.method, request.path, request.range) for request in hub.requests if GSM8K in request.path)
    assert 0 < max(asked.values()) < 6, "once (the clients repeat themselves), not for each of six sources"
    assert not [request for request in hub.data_requests() if SMOLTALK2 in request.path and _reads_rows(hub, request, SMOLTALK2)]
    assert not list((tmp_path / "store").glob("datasets/*/*/*/manifest.json"))


def _reads_rows(hub: LoopbackHub, request: Request, repository: str) -> bool:
    """Its range ends before the file does: there the footer is."""
    head = hub.repositories.made(repository).head
    assert request.range is not None
    return request.range[1] < head.files[request.path.split(f"/{head.sha}/")[1]].size


def test_an_error_does_not_wait_for_reads_ahead_that_are_stalled(hub: LoopbackHub, recipe_file: Callable, blend: Callable):
    path, begins, asked, stall = "train-00000-of-00002.parquet", len(b"PAR1"), threading.Event(), 90

    def reads_group(request: Request, *, is_first: bool) -> bool:
        return data(path)(request) and _reads_rows(hub, request, PREFERENCES) and ((request.range or (0,))[0] == begins) == is_first

    hub.faults += [
        Fault(lambda request: reads_group(request, is_first=True), times=99, status=404, first=lambda: asked.wait(20)),
        Fault(lambda request: reads_group(request, is_first=False), times=99, body="stalled", at=0, seconds=stall, first=asked.set),
    ]
    began = time.monotonic()
    error = blend(recipe_file(), "stage3_dpo", HF_HUB_DOWNLOAD_TIMEOUT=str(2 * stall)).get("error", "")
    assert time.monotonic() - began < stall / 2, "and the process has ended"
    assert path in error
    assert "404" in error
    assert asked.is_set()


def test_a_finished_source_is_not_read_again(hub: LoopbackHub, recipe_file: Callable, blend: Callable, tmp_path: Path):
    hub.faults.append(Fault(data(f"{THINK}-00001-of-00002.parquet"), times=999, after=1, status=404))
    assert "404" in blend(recipe_file())["error"]
    finished = {path.parent.parent.name for path in (tmp_path / "store").glob("datasets/sources/*/*/manifest.json")}
    assert len(finished) == 5
    hub.faults.clear()
    hub.requests.clear()
    assert "folder" in blend(recipe_file())
    footers_apart = [request for request in hub.data_requests() if request.range and request.range[0] != 0]
    assert footers_apart
    assert {request.path.rsplit("/", 1)[-1].rsplit("-", 3)[0] for request in footers_apart} == {THINK}


def _rows(made: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    import datasets

    assert "folder" in made, made
    loaded: Any = datasets.load_dataset(made["folder"], split="train", cache_dir=str(Path(made["folder"]).parents[4] / "loaded"))
    return loaded.to_list()


def _bytes(made: dict[str, Any]) -> dict[str, str]:
    assert "folder" in made, made
    return hashes(Path(made["folder"]))
