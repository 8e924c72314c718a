"""Stage datasets: what is cut, what is dropped and counted, and what carries a label."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.base_model import make_base
from trlm_core.data.rows import CONVERSATION, FAULTY_PREFERENCE, conversation, schema_of
from trlm_core.data.shards import read_shards, write_shards
from trlm_core.data.stage_dataset import ROWS_AT_ONCE, RenderingError, render_stage_dataset, stage_dataset_spec
from trlm_core.recipes.schema import Recipe, Rendering
from trlm_core.text.tokenizer import IGNORED, load_tokenizer
from trlm_core.training.dpo import pair_collator
from trlm_core.training.sft import collate_sft

PLACE = {"source": "s", "_source_dataset": "d", "_source_subset": "u", "_source_split": "t", "_source_row": 7}
PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def rendered(
    store: Store, tiny_base: Path, changed_recipe: Callable[..., Recipe]
) -> Callable[..., tuple[Manifest, list[dict[str, Any]], Any]]:
    """`rendered(number, rows, **leaves)`: the stage dataset of literal rows under the tiny recipe, its training rows and its tokenizer."""

    def render(
        number: int,
        rows: list[dict[str, Any]],
        *,
        into: Store = store,
        weights: Path = tiny_base,
        options: dict[str, Any] | None = None,
        **leaves: Any,
    ) -> tuple[Manifest, list[dict[str, Any]], Any]:
        settings = {f"stages.{number}.rendering.{key}": value for key, value in leaves.items()}
        recipe = changed_recipe(**settings, **{"base.path": str(weights)})
        stage, base = recipe.stages[number], make_base(into, recipe.base)
        schema = FAULTY_PREFERENCE if stage.training.trainer == "dpo" else CONVERSATION

        def build(folder: Path) -> dict[str, Any]:
            write_shards(folder, "train", pa.Table.from_pylist([{**PLACE, **row} for row in rows], schema=schema))
            write_shards(folder, "held_out", pa.Table.from_pylist([], schema=schema))
            return {}

        blend = into.make(Spec("datasets", recipe.name, stage.name, {"rows": rows}, {}), build)
        dataset = render_stage_dataset(into, recipe, stage, blend, base, **(options or {}))
        folder = into.folder(dataset)
        return dataset, read_shards(folder, "train").to_pylist(), load_tokenizer(folder / "tokenizer")

    return render


def chat(*turns: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]}


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"chosen": conversation(question, chosen), "rejected": conversation(question, rejected), "fault": "miscount"}


def test_an_sft_row_is_the_conversation_s_ids_with_labels_on_its_replies(rendered: Callable):
    dataset, (row,), tokenizer = rendered(0, [chat("4 + 3?", "7", "7 - 2?", "5")])
    assert tokenizer.decode(row["input_ids"]) == PROMPT.format("4 + 3?") + "7<|im_end|>\n" + PROMPT.format("7 - 2?") + "5<|im_end|>\n"
    seven, five = tokenizer.convert_tokens_to_ids(["7", "5"])
    assert [label for label in row["labels"] if label != IGNORED] == [seven, 2, five, 2]
    assert (row["source"], row["fault"]) == ("s", None)
    counts = dataset.counts
    assert (counts["train_rows"], counts["train_tokens"], counts["train_label_tokens"]) == (1, len(row["input_ids"]), 4)


def test_a_batch_of_rendered_rows_labels_no_pad(rendered: Callable):
    _, rows, _ = rendered(0, [chat("4?", "7"), chat("What is the sum of 4 and 3 and 2?", "The sum is 9.")])
    batch = collate_sft(rows, pad=2)
    assert (batch["attention_mask"] == 0).any()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    for row, labels in zip(rows, batch["labels"], strict=True):
        assert labels[: len(row["labels"])].tolist() == row["labels"]
        assert row["labels"][-2] == 2, "the end of the turn is labelled though it is also the pad token"


def test_a_batch_of_pairs_completes_no_pad_and_no_prompt(rendered: Callable):
    _, rows, _ = rendered(2, [pair("4 + 3?", "7", "11, or so it is"), pair("What is 4 + 3 + 2?", "It is 9", "8")])
    batch = pair_collator(2)(rows)
    for half, side in enumerate(("chosen_ids", "rejected_ids")):
        for n, row in enumerate(rows):
            ids, mask, completed = (batch[key][half * 2 + n] for key in ("input_ids", "attention_mask", "completion_mask"))
            assert ids[mask == 1].tolist() == row["prompt_ids"] + row[side]
            assert ids[completed == 1].tolist() == row[side]


def test_an_sft_row_over_max_length_is_cut_from_the_right(rendered: Callable):
    _, (whole,), _ = rendered(0, [chat("4 + 3?", "The sum is 7.")])
    _, (cut,), _ = rendered(0, [chat("4 + 3?", "The sum is 7.")], max_length=15)
    assert (cut["input_ids"], cut["labels"]) == (whole["input_ids"][:15], whole["labels"][:15])


def test_a_row_that_lost_every_label_is_dropped_and_counted(rendered: Callable):
    dataset, rows, _ = rendered(0, [chat("1 2 3 4 5 6 7 8 9 1 2 3 4 5 6 7 8 9", "1"), chat("4 + 3?", "7")], max_length=20)
    assert len(rows) == dataset.counts["train_rows"] == 1
    assert dataset.counts["dropped_without_label"] == 1


def test_a_stage_dataset_without_a_row_is_an_error(rendered: Callable):
    with pytest.raises(RenderingError, match=r"stage1_sft: wanted rows to train on, got none.*'dropped_without_label': 1.*max_length"):
        rendered(0, [chat("4 + 3?", "7")], max_length=4)


def test_a_dpo_row_is_prompt_and_both_replies_with_their_end_of_turn_and_no_line_break_after_it(rendered: Callable):
    _, (row,), tokenizer = rendered(2, [pair("4 + 3?", "<think>\n7.\n</think>\n7", "<think>\n8.\n</think>\n8")])
    assert tokenizer.decode(row["prompt_ids"]) == PROMPT.format("4 + 3?")
    assert tokenizer.decode(row["chosen_ids"]) == "<think>\n7.\n</think>\n7<|im_end|>"
    assert tokenizer.decode(row["rejected_ids"]) == "<think>\n8.\n</think>\n8<|im_end|>"
    assert row["fault"] == "miscount"


def test_a_dpo_prompt_is_cut_from_the_left(rendered: Callable):
    _, (whole,), _ = rendered(2, [pair("1 2 3 4 5 6 7 8 9?", "7", "8")])
    _, (cut,), tokenizer = rendered(2, [pair("1 2 3 4 5 6 7 8 9?", "7", "8")], max_prompt_length=10)
    assert cut["prompt_ids"] == whole["prompt_ids"][-10:]
    assert tokenizer.decode(cut["prompt_ids"]).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert (cut["chosen_ids"], cut["rejected_ids"]) == (whole["chosen_ids"], whole["rejected_ids"])


def test_a_pair_of_which_either_reply_is_too_long_is_dropped_and_counted(rendered: Callable):
    long = "1 2 3 4 5 6 7 8 9 " * 6
    rows = [pair("4 + 3?", "7", "8"), pair("4 + 3?", long, "8"), pair("4 + 3?", "7", long)]
    dataset, kept, _ = rendered(2, rows, max_length=60)
    assert len(kept) == dataset.counts["train_rows"] == 1
    assert dataset.counts["dropped_too_long"] == 2


def test_a_pair_whose_replies_answer_different_prompts_is_dropped_and_counted(rendered: Callable):
    other = pair("4 + 3?", "7", "8")
    other["rejected"] = pair("4 - 3?", "7", "8")["rejected"]
    dataset, kept, _ = rendered(2, [pair("4 + 3?", "7", "8"), other])
    assert len(kept) == dataset.counts["train_rows"] == 1
    assert dataset.counts["dropped_prompts_differ"] == 1


def test_rows_and_pairs_say_where_they_come_from(rendered: Callable):
    _, (row,), _ = rendered(0, [{**chat("4 + 3?", "7"), "_source_dataset": "HuggingFaceTB/smoltalk2", "_source_subset": "SFT"}])
    _, (paired,), _ = rendered(2, [{**pair("4 + 3?", "7", "8"), "_source_subset": ""}])
    assert (row["origin"], paired["origin"]) == ("HuggingFaceTB/smoltalk2 SFT t row 7", "d t row 7")


def test_any_number_of_threads_writes_the_same_bytes_in_the_blend_s_order(rendered: Callable, tmp_path: Path):
    """More rows than the threads hold at once, some of them dropped."""
    count = 7 * ROWS_AT_ONCE + 3
    long = "1 2 3 4 5 6 7 8 9 " * 4
    rows = [{**chat(f"{long if n % 5 == 0 else ''}{n} + 3?", "7"), "_source_row": n} for n in range(count)]
    files = []
    for threads in (1, 2, 5):
        seen: list[tuple[int, int]] = []
        options = {"threads": threads, "on_rows": lambda *now, seen=seen: seen.append(now)}
        dataset, kept, _ = rendered(0, rows, into=Store.open(tmp_path / f"with-{threads}"), options=options, max_length=40)
        files.append({name: entry.sha256 for name, entry in dataset.files.items()})
        assert [row["origin"] for row in kept] == [f"d u t row {n}" for n in range(count) if n % 5]
        assert dataset.counts["dropped_without_label"] == count - len(kept)
        assert (seen, seen[-1]) == (sorted(seen), (count, count))
    assert files[0] == files[1] == files[2]


def test_a_reply_whose_line_breaks_join_the_prompt_s_own_is_kept_and_counted(rendered: Callable, tiny_base: Path, tmp_path: Path):
    """Two line breaks are one token of SmolLM2: a Hub's row of that kind must not end a blend of 50,000."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    backend = json.loads((base / "tokenizer.json").read_text())
    backend["model"]["vocab"]["ĊĊ"] = 476
    backend["model"]["merges"].append(["Ċ", "Ċ"])
    (base / "tokenizer.json").write_text(json.dumps(backend))
    dataset, (row, plain), tokenizer = rendered(2, [pair("4 + 3?", "\n\n7", "8"), pair("4 + 3?", "7", "8")], weights=base)
    assert dataset.counts["prompts_unlike_training_text"] == 1
    assert tokenizer.decode(row["prompt_ids"]) == PROMPT.format("4 + 3?").removesuffix("\n")
    assert tokenizer.decode(row["prompt_ids"] + row["chosen_ids"]) == PROMPT.format("4 + 3?") + "\n\n7<|im_end|>"
    assert tokenizer.decode(plain["prompt_ids"]) == PROMPT.format("4 + 3?")


def test_a_conversation_that_ends_in_no_reply_is_named_with_its_provenance(rendered: Callable):
    with pytest.raises(
        RenderingError, match=r"d u t row 7: wanted the generation prompt to begin the training text; .* user, assistant, user$"
    ):
        rendered(0, [chat("4 + 3?", "7", "and then?")])


def test_a_multi_turn_pair_takes_all_but_the_last_turn_as_its_prompt(rendered: Callable):
    turns = conversation("4 + 3?", "7")
    rows = [{"chosen": [*turns, *conversation("and 1?", "8")], "rejected": [*turns, *conversation("and 1?", "9")], "fault": None}]
    _, (row,), tokenizer = rendered(2, rows)
    assert tokenizer.decode(row["prompt_ids"]) == PROMPT.format("4 + 3?") + "7<|im_end|>\n" + PROMPT.format("and 1?")
    assert tokenizer.decode(row["chosen_ids"]) == "8<|im_end|>"


def test_the_reference_template_is_rendered_and_its_unlike_prompts_are_counted(rendered: Callable):
    dataset, rows, _ = rendered(0, [chat("4 + 3?", "7")], template="reference", loss_on="all")
    assert dataset.counts["prompts_unlike_training_text"] == 1
    assert rows[0]["labels"] == rows[0]["input_ids"]


def test_the_reference_template_s_pairs_end_their_replies_with_the_end_of_turn(rendered: Callable):
    _, (row,), tokenizer = rendered(2, [pair("4 + 3?", "7", "8")], template="reference")
    for side, answer in (("chosen_ids", "7"), ("rejected_ids", "8")):
        assert tokenizer.decode(row["prompt_ids"] + row[side]).endswith(f"<|im_start|>assistant\n{answer}<|im_end|>")


def test_the_tokenizer_lies_beside_its_rows_with_the_tokens_of_this_stage_and_those_before(built: Any):
    sizes = [len(load_tokenizer(built.folder(stage.dataset) / "tokenizer")) for stage in built.stages.values()]
    assert sizes == [476, 478, 478]


def test_a_blend_s_both_splits_are_rendered_row_by_row(built: Any):
    for stage in built.stages.values():
        for split in ("train", "held_out"):
            blend, dataset = (read_shards(built.folder(each), split, schema_of(stage.stage)) for each in (stage.blend, stage.dataset))
            assert blend["source"].to_pylist() == dataset["source"].to_pylist()


CHANGES: dict[str, Any] = {
    "template": "reference",
    "system_prompt": "You think.",
    "loss_on": "all",
    "max_length": 33,
    "new_tokens": {"tokens": ["<think>", "</think>", "<end>"], "start": "mean", "margin": None},
}


@pytest.mark.parametrize("leaf", sorted(Rendering.model_fields.keys() - {"max_prompt_length"}))  # which is of pairs
def test_every_field_of_a_rendering_changes_the_stage_dataset_and_its_fingerprint(leaf: str, rendered: Callable):
    row = chat("4 + 3?", "<think>\n4 + 3 = 7. 7 - 2 = 5. 5 + 1 = 6.\n</think>\n<end>6")
    others = {"loss_on": "all"} if leaf == "template" else {}  # the reference template marks no reply
    before, rows, _ = rendered(1, [row], **others)
    after, changed, _ = rendered(1, [row], **others, **{leaf: CHANGES[leaf]})
    assert after.fingerprint != before.fingerprint
    assert changed != rows


def test_the_length_of_a_prompt_changes_a_pair_s_fingerprint(built: Any):
    stage = built.stages["stage3_dpo"]
    shorter = stage.stage.model_copy(update={"rendering": stage.stage.rendering.model_copy(update={"max_prompt_length": 9})})
    spec = stage_dataset_spec(built.recipe, shorter, stage.blend, built.base)
    assert spec.fingerprint != stage.dataset.fingerprint
    assert replace(spec, identity=stage.dataset.identity).fingerprint == stage.dataset.fingerprint, "nothing else changed"
