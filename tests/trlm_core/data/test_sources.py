"""Sources: what one gives, what it refuses, and a Hub split read through `datasets` from a folder that stands for the repository."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tqdm.contrib.concurrent import thread_map

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.base_model import make_base
from trlm_core.data.blend import assemble
from trlm_core.data.hub import resolver
from trlm_core.data.revisions import files_revision
from trlm_core.data.shards import read_shards
from trlm_core.data.sources import SourceError, check_sources, read_source, source_spec
from trlm_core.data.stage_dataset import render_stage_dataset
from trlm_core.recipes.schema import Recipe
from trlm_core.text.tokenizer import conversation_ids, load_tokenizer, stage_tokenizer

CARD = """---
configs:
- config_name: SFT
  data_files:
  - split: everyday_no_think
    path: SFT/everyday_no_think-*.parquet
  - split: summarize_no_think
    path: SFT/summarize_no_think-*.parquet
- config_name: default
  data_files:
  - split: train
    path: pairs-*.parquet
---
"""
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
KWARGS = pa.struct(
    [
        ("custom_instructions", pa.string()),
        ("enable_thinking", pa.bool_()),
        ("python_tools", pa.list_(pa.string())),
        ("xml_tools", pa.list_(pa.string())),
    ]
)
SFT = pa.schema([("messages", MESSAGES), ("chat_template_kwargs", KWARGS), ("source", pa.string())])
PAIRS = pa.schema(
    [
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("dataset", pa.string()),
        ("prompt", pa.string()),
        ("category", pa.string()),
        ("prompt_id", pa.string()),
    ]
)


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A repository of smoltalk2's and the preference set's schemas, as a folder."""
    repo = tmp_path / "hub"
    (repo / "SFT").mkdir(parents=True)
    (repo / "README.md").write_text(CARD)
    kwargs = {"custom_instructions": "", "enable_thinking": False, "python_tools": [], "xml_tools": []}
    for split, source in (("everyday_no_think", "smoltalk-everyday"), ("summarize_no_think", None)):
        rows = [{"messages": turns(f"{split} {n}?", str(n)), "chat_template_kwargs": kwargs, "source": source} for n in range(9)]
        pq.write_table(pa.Table.from_pylist(rows, schema=SFT), repo / "SFT" / f"{split}-00000-of-00001.parquet")
    pairs = [
        {
            "chosen": turns(f"{n} + 1?", str(n + 1)),
            "rejected": turns(f"{n} + 1?", str(n)),
            "dataset": "olmo-mix",
            "prompt": f"{n} + 1?",
            "category": "math",
            "prompt_id": str(n),
        }
        for n in range(9)
    ]
    pq.write_table(pa.Table.from_pylist(pairs, schema=PAIRS), repo / "pairs-00000-of-00001.parquet")
    return repo


@pytest.fixture
def hub_recipe(hub: Path, changed_recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """The tiny recipe whose stages 1 and 3 read the folder as a Hub repository."""

    def make(*, count: int = 8, **changes: Any) -> Recipe:
        shared = {"kind": "hub", "repo": str(hub), "revision": files_revision(f"{hub}/**/*"), "num_examples": count, "rename": {}}
        shared |= {"sampling": "head", "allow_short": False, "reported_share": None, "answers_by": None}
        sft = [
            {**shared, "subset": "SFT", "split": split, "drop": ["chat_template_kwargs"]}
            for split in ("everyday_no_think", "summarize_no_think")
        ]
        pairs = {
            **shared,
            "subset": None,
            "split": "train",
            "drop": ["prompt", "category", "prompt_id"],
            "rename": {"dataset": "source"},
            **changes,
        }
        blends = {"sources": sft, "max_tokens": None}, {"sources": [pairs], "max_tokens": None, "faults": [], "unseen_faults": []}
        leaves = {f"stages.{n}.blend.{key}": value for n, blend in zip((0, 2), blends, strict=True) for key, value in blend.items()}
        return changed_recipe(**leaves, **{"evaluation.families": ["letter_counting"], "evaluation.unseen_families": ["lcm"]})

    return make


def test_a_hub_split_gives_its_first_rows_in_order_with_their_provenance(hub: Path, hub_recipe: Callable[..., Recipe], store: Store):
    manifest, rows = _read(store, hub_recipe(), 0, 0)
    assert manifest.name == "everyday_no_think"
    assert manifest.counts == {"train": 8, "held_out": 0, "spare": 0, "read": 9, "dropped": {}}
    assert rows[0] == {
        "messages": turns("everyday_no_think 0?", "0"),
        "source": "smoltalk-everyday",
        "_source_dataset": str(hub),
        "_source_subset": "SFT",
        "_source_split": "everyday_no_think",
        "_source_row": 0,
    }
    assert [row["messages"][0]["content"] for row in rows] == [f"everyday_no_think {n}?" for n in range(8)]


def test_a_row_without_a_source_is_given_its_split_s_name(hub_recipe: Callable[..., Recipe], store: Store):
    _, rows = _read(store, hub_recipe(), 0, 1)
    assert {row["source"] for row in rows} == {"summarize_no_think"}


def test_columns_are_dropped_and_renamed_as_the_recipe_says(hub_recipe: Callable[..., Recipe], store: Store):
    _, rows = _read(store, hub_recipe(), 2, 0)
    assert set(rows[0]) == {"chosen", "rejected", "source", "_source_dataset", "_source_subset", "_source_split", "_source_row"}
    assert rows[0]["source"] == "olmo-mix"
    assert (rows[4]["chosen"], rows[4]["rejected"]) == (turns("4 + 1?", "5"), turns("4 + 1?", "4"))


@pytest.mark.parametrize("number", [0, 2])
def test_a_blend_of_hub_splits_passes_its_checks_and_is_rendered(number: int, hub_recipe: Callable[..., Recipe], store: Store):
    recipe = hub_recipe()
    stage, base = recipe.stages[number], make_base(store, recipe.base)
    blend = assemble(store, recipe, stage, [read_source(store, recipe, stage, source, base) for source in stage.blend.sources], base)
    dataset = render_stage_dataset(store, recipe, stage, blend, base)
    assert dataset.counts["train_rows"] == 8 * len(stage.blend.sources)


def test_a_hub_split_that_is_shorter_than_its_count_is_an_error_with_both_numbers(hub_recipe: Callable[..., Recipe], store: Store):
    with pytest.raises(SourceError, match=r"everyday_no_think: wanted 1,000 examples, the source has 9"):
        _read(store, hub_recipe(count=1_000), 0, 0)
    assert store.manifests() == [make_base(store, hub_recipe().base)]


@pytest.mark.parametrize("column", ["chosen", "rejected"])
def test_a_column_that_a_hub_split_does_not_have_is_named(column: str, hub_recipe: Callable[..., Recipe], store: Store):
    with pytest.raises(SourceError, match=column):
        _read(store, hub_recipe(drop=["prompt", "category", "prompt_id", column]), 2, 0)


def test_a_column_to_rename_that_is_not_there_is_named(hub_recipe: Callable[..., Recipe], store: Store):
    with pytest.raises(SourceError, match=r"wanted the columns dataset_name to rename, the split has chosen, rejected"):
        _read(store, hub_recipe(rename={"dataset_name": "source"}), 2, 0)


def test_a_generated_source_that_runs_dry_is_an_error_with_both_numbers(changed_recipe: Callable[..., Recipe], store: Store):
    recipe = changed_recipe(
        **{"stages.1.blend.sources.0.num_examples": 5_000, "families.chain_sum": {"min_terms": 2, "max_terms": 2, "max_digits": 1}}
    )
    with pytest.raises(SourceError, match=r"chain_sum-trace: wanted 5,000 examples, the source has \d+ \(dropped: .*widen"):
        _read(store, recipe, 1, 0)


def test_dialogs_that_run_dry_are_an_error_with_both_numbers(changed_recipe: Callable[..., Recipe], store: Store):
    with pytest.raises(SourceError, match=r"everyday-dialogs: wanted 9,000 examples, the source has \d{2,3} "):
        _read(store, changed_recipe(**{"stages.0.blend.sources.0.num_examples": 9_000}), 0, 0)


def test_too_few_held_out_rows_are_an_error_of_their_own(changed_recipe: Callable[..., Recipe], store: Store):
    with pytest.raises(SourceError, match=r"everyday-dialogs: wanted 900 held-out examples, the source has \d+ "):
        _read(store, changed_recipe(**{"stages.0.blend.sources.0.num_held_out": 900}), 0, 0)


@pytest.mark.parametrize(("number", "source"), [(0, 0), (0, 1), (1, 1), (2, 0)])
def test_no_row_is_longer_than_max_tokens_and_a_lower_limit_keeps_shorter_rows(
    number: int, source: int, built: Any, changed_recipe: Callable[..., Recipe], store: Store
):
    stage = built.recipe.stages[number]
    limit = sorted(_lengths(built.recipe, number, built.store, built.base, built.stages[stage.name].sources[source]))[-3]
    recipe = changed_recipe(**{f"stages.{number}.blend.max_tokens": limit})
    manifest, _ = _read(store, recipe, number, source)
    assert max(_lengths(recipe, number, store, make_base(store, recipe.base), manifest)) <= limit
    assert manifest.counts["train"] == stage.blend.sources[source].num_examples, "others are drawn in their place"


def test_both_replies_of_a_pair_have_the_same_number_of_tokens(built: Any):
    for manifest in built.stages["stage3_dpo"].sources:
        lengths = _lengths(built.recipe, 2, built.store, built.base, manifest)
        assert lengths[::2] == lengths[1::2]


@pytest.mark.parametrize(
    ("leaf", "value"),
    [
        ("stages.1.blend.seed", 5),
        ("stages.1.blend.max_tokens", 90),
        ("stages.1.blend.sources.0.num_examples", 4),
        ("stages.1.blend.sources.0.num_held_out", 1),
        ("stages.1.blend.sources.0.form", "answer"),
        ("families.chain_sum", {"min_terms": 2, "max_terms": 2, "max_digits": 2}),
        ("generator", "0.1.26"),
        ("stages.1.rendering.system_prompt", "You think."),
        ("stages.1.rendering.template", "reference"),
        ("stages.1.rendering.new_tokens", None),
    ],
)
def test_whatever_changes_the_rows_of_a_source_changes_its_fingerprint(
    leaf: str, value: Any, built: Any, changed_recipe: Callable[..., Recipe]
):
    """The last three change the tokens of a row, and so which rows are within max_tokens."""
    allowed = {"stages.1.rendering.loss_on": "all"} if value == "reference" else {}  # it marks no replies
    before, after = built.recipe, changed_recipe(**{leaf: value}, **allowed)
    specs = [source_spec(recipe, recipe.stages[1], recipe.stages[1].blend.sources[0], built.base) for recipe in (before, after)]
    assert specs[0].fingerprint != specs[1].fingerprint


def test_without_a_limit_the_rendering_is_no_part_of_a_source(built: Any, changed_recipe: Callable[..., Recipe]):
    free = {"stages.1.blend.max_tokens": None}
    recipes = changed_recipe(**free), changed_recipe(**free, **{"stages.1.rendering.system_prompt": "You think."})
    specs = [source_spec(recipe, recipe.stages[1], recipe.stages[1].blend.sources[0], built.base) for recipe in recipes]
    assert specs[0].fingerprint == specs[1].fingerprint


def test_pairs_without_unseen_faults_can_be_read(changed_recipe: Callable[..., Recipe], store: Store):
    manifest, _ = _read(store, changed_recipe(**{"stages.2.blend.unseen_faults": []}), 2, 0)
    assert manifest.counts["held_out"] >= 3


def test_another_version_of_a_pinned_package_is_an_error(changed_recipe: Callable[..., Recipe]):
    check_sources(changed_recipe())
    with pytest.raises(SourceError, match=r"wanted reasoning-gym==0\.0\.1, got 0\.1\.25 installed; run `make setup`"):
        check_sources(changed_recipe(generator="0.0.1"))
    with pytest.raises(SourceError, match=r"wanted chatterbot-corpus==9, got 1\.3\.3 installed"):
        check_sources(changed_recipe(dialogs="9"))


def test_hub_sources_are_refused_while_the_hub_is_switched_off(hub_recipe: Callable[..., Recipe]):
    with pytest.raises(SourceError, match="wanted the Hub for 1 sources, got HF_HUB_OFFLINE set; unset it"):
        check_sources(hub_recipe(repo="owner/pairs"))


def _read(store: Store, recipe: Recipe, number: int, source: int) -> tuple[Manifest, list[dict[str, Any]]]:
    stage = recipe.stages[number]
    manifest = read_source(store, recipe, stage, stage.blend.sources[source], make_base(store, recipe.base))
    return manifest, read_shards(store.folder(manifest), "train").to_pylist()


def _lengths(recipe: Recipe, number: int, store: Store, base: Manifest, manifest: Manifest) -> list[int]:
    stage = recipe.stages[number]
    tokenizer = stage_tokenizer(load_tokenizer(store.folder(base)), recipe.added_tokens(stage), stage.rendering)
    rows = read_shards(store.folder(manifest), "train").to_pylist()
    sides = [row[side] for row in rows for side in ("messages", "chosen", "rejected") if side in row]
    return [len(conversation_ids(tokenizer, side)) for side in sides]


def test_a_bar_of_datasets_never_takes_its_lock_away_from_the_bar_of_another_thread():
    bars = resolver().utils.tqdm
    thread_map(str, [1], tqdm_class=bars, disable=True)  # as `datasets` resolves files
    assert "_lock" in vars(bars)
