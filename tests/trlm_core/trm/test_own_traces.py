"""Own traces: what is kept of a checkpoint's replies and why the rest is not; held-out questions stay, whatever was replied."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from trlm_core.artifacts.fingerprint import file_sha256
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.base_model import make_base
from trlm_core.data.generated.problem import Problem
from trlm_core.data.split import is_held_out
from trlm_core.inference.generate import Generated
from trlm_core.recipes.schema import FolderBase, Rendering
from trlm_core.recipes.trm_load import load_trm_recipe, parse_trm_recipe
from trlm_core.recipes.trm_schema import OwnTraces, Schedule, TRMRecipe
from trlm_core.text.tokenizer import load_tokenizer, stage_tokenizer
from trlm_core.training.new_tokens import grow_embeddings
from trlm_core.trm.own_traces import (
    Asked,
    asked_questions,
    make_own_traces,
    reply_to,
    thought_examples,
    verdict,
    verdict_counts,
)
from trlm_core.trm.text_training import TextTraining, train_on_text
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import TOKENIZER, ThoughtDataError, read_thoughts

SUM = Problem("chain_sum", "What is 4 + 3?", ("4 + 3 = 7.",), "7", "number")
RIGHT = "<think>\n4 + 3 = 7.\n</think>\n7"
RENDERING = Rendering(template="clean", system_prompt=None, loss_on="assistant", max_length=128, max_prompt_length=None, new_tokens=None)


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return stage_tokenizer(tiny_tokenizer, ["<think>", "</think>"], RENDERING)


@pytest.fixture(scope="module")
def recipe() -> TRMRecipe:
    """Two families of those of the 135M recipe."""
    tree = load_trm_recipe("trm-smollm2-135m").model_dump(mode="json")
    families = {name: tree["data"]["families"][name] for name in ("chain_sum", "products")}
    for family in families.values():
        family["questions"] = {"train": 700, "validation": 2, "test": 1}
    tree["data"] |= {"families": families, "max_new_tokens": 40}
    tree["phase1"]["norm_examples"] = 1_000
    tree["evaluation"]["examples"] = 4
    return parse_trm_recipe(tree, where="two families")


@pytest.fixture(scope="module")
def data(recipe: TRMRecipe) -> OwnTraces:
    """Of the recipe's families, few enough questions to answer here."""
    assert isinstance(recipe.data, OwnTraces)
    tree = recipe.data.model_dump(mode="json")
    for family in tree["families"].values():
        family["questions"] = {"train": 4, "validation": 2, "test": 1}
    return OwnTraces.model_validate(tree)


@pytest.mark.parametrize(
    ("text", "ended", "said"),
    [
        (RIGHT, True, "verified"),
        (RIGHT, False, "not_ended"),
        ("<think>\n4 + 3 = 8.\n</think>\n8", True, "wrong"),
        ("<think>\n4 + 3 = 7.\n</think>\nThe answer is 7.", True, "worded_otherwise"),
        ("7", True, "not_well_formed"),
        ("<think>\n4 + 3 = 7.\n7", True, "not_well_formed"),
        ("<think>\n\n</think>\n7", True, "not_well_formed"),
        ("<think>\n4 + 3 = 7.\n</think>", True, "not_well_formed"),
        ("<think>\n4 <think> + 3 = 7.\n</think>\n7", True, "not_well_formed"),
        ("Well. <think>\n4 + 3 = 7.\n</think>\n7", True, "not_well_formed"),
        (" <think>\n4 + 3 = 7.\n</think>\n7", True, "not_well_formed"),  # its prompt would not end in <think>
    ],
)
def test_a_reply_is_kept_where_one_thought_leads_to_the_answer_in_the_familys_words(text: str, ended: bool, said: str):
    assert verdict(SUM, Generated(text, tokens=12, ended=ended)) == said


def test_a_row_is_the_reply_cut_at_its_tags(tokenizer: PreTrainedTokenizerBase):
    (example,) = thought_examples(tokenizer, [Asked("train", 5, SUM)], [Generated(RIGHT, tokens=12, ended=True)])
    assert (example.provenance, example.split) == ("own/chain_sum/train/5", "train")
    assert example.prompt == "<|im_start|>user\nWhat is 4 + 3?<|im_end|>\n<|im_start|>assistant\n<think>"
    assert (example.thought, example.answer) == ("\n4 + 3 = 7.\n", "\n7<|im_end|>")
    texts = [tokenizer.decode([*ids]) for ids in dataclasses.astuple(example.row)]
    assert texts == [example.prompt, example.thought, example.answer]


def test_of_train_a_reply_that_is_not_verified_is_dropped_and_of_the_held_out_splits_our_trace_takes_its_place(
    tokenizer: PreTrainedTokenizerBase,
):
    questions = [Asked(split, 0, SUM) for split in ("train", "validation", "test")]  # type: ignore[arg-type]
    wrong, right = Generated("8", tokens=2, ended=True), Generated(RIGHT, tokens=12, ended=True)
    kept = [*thought_examples(tokenizer, questions, [wrong, wrong, right])]
    assert [each.provenance for each in kept] == ["derived/chain_sum/validation/0", "own/chain_sum/test/0"]
    assert kept[0].row == kept[1].row  # 4 + 3 = 7. is what it would have been


def test_replies_are_counted_by_split_and_verdict():
    questions = [Asked("train", 0, SUM), Asked("train", 1, SUM), Asked("test", 0, SUM)]
    replies = [Generated(RIGHT, 12, ended=True), Generated("8", 2, ended=True), Generated("8", 2, ended=False)]
    assert verdict_counts(questions, replies) == {
        "replies": {"train": {"not_well_formed": 1, "verified": 1}, "validation": {}, "test": {"not_ended": 1}}
    }


def test_a_checkpoint_that_verifies_nothing_is_an_error_with_the_reasons():
    with pytest.raises(ThoughtDataError, match="wanted replies of train that are verified, got 1 not_ended, 1 not_well_formed; take a"):
        verdict_counts([Asked("train", 0, SUM)] * 2, [Generated("8", 2, ended=True), Generated("8", 2, ended=False)])


def test_a_question_is_asked_once_and_held_out_splits_ask_what_no_stage_trains_on(data: OwnTraces):
    questions = asked_questions(data)
    assert len({each.problem.question for each in questions}) == len(questions) == 2 * 7
    assert all(is_held_out(each.problem.question) == (each.split != "train") for each in questions)
    assert questions == asked_questions(data)


def test_two_families_of_the_same_questions_share_none(data: OwnTraces):
    twice = data.families["chain_sum"].model_copy(update={"sizes": {"min_terms": 2, "max_terms": 2, "max_digits": 1}})
    alike = data.families["products"].model_copy(update={"sizes": {"max_terms": 2, "max_digits": 1}})
    both = data.model_copy(update={"families": {"chain_sum": twice, "basic_arithmetic": alike}})
    questions = asked_questions(both)
    assert len({each.problem.question for each in questions}) == len(questions) == 14


def test_a_family_with_too_few_questions_is_an_error_with_both_numbers(data: OwnTraces):
    counts = data.families["products"].questions.model_copy(update={"train": 5_000})
    family = data.families["products"].model_copy(update={"questions": counts})
    with pytest.raises(ThoughtDataError, match=r"products: wanted 5,000 questions for train, its sizes give 31\d; lower the counts"):
        asked_questions(data.model_copy(update={"families": {"products": family}}))


def test_another_version_of_the_generator_is_an_error(data: OwnTraces):
    with pytest.raises(ThoughtDataError, match=r"wanted reasoning-gym 0\.1\.1, got 0\.1\.25"):
        asked_questions(data.model_copy(update={"generator": "0.1.1"}))


def test_replies_that_are_kept_are_not_generated_again_and_half_a_line_is(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, data: OwnTraces, tmp_path: Path
):
    grow_embeddings(tiny_model, len(tokenizer), [ThinkTokens.of(tokenizer).think, ThinkTokens.of(tokenizer).end_think])
    questions, kept = asked_questions(data)[:3], tmp_path / "replies.jsonl"
    told: list[tuple[int, int]] = []
    whole = reply_to(tiny_model, tokenizer, questions, 4, kept, lambda done, total: told.append((done, total)))
    assert told == [(3, 3)]
    first = '{"ended":true,"text":"from an earlier process","tokens":3}\n'
    kept.write_text(first + kept.read_text().splitlines()[1][:20])
    resumed = reply_to(tiny_model, tokenizer, questions, 4, kept, lambda done, total: None)
    assert resumed[0].text == "from an earlier process"
    assert resumed[1:] == whole[1:]
    assert len(kept.read_text().splitlines()) == 3


def test_a_checkpoint_that_has_learnt_its_questions_gives_their_traces(store: Store, recipe: TRMRecipe, data: OwnTraces, taught: Manifest):
    manifest = make_own_traces(store, recipe, data, taught, "cpu")
    folder = store.folder(manifest)
    train = read_thoughts(folder, "train")
    assert manifest.counts["train"] == manifest.counts["replies"]["train"]["verified"] == len(train) >= 4
    assert (manifest.counts["validation"], manifest.counts["test"]) == (4, 2)
    assert {each.provenance.split("/")[0] for each in train} == {"own"}
    assert ThinkTokens.of(load_tokenizer(folder / TOKENIZER)).think == train[0].row.prompt[-1]
    assert manifest.inputs == {"base": taught.fingerprint}
    assert make_own_traces(store, recipe, data, taught, "cpu") == manifest


@pytest.fixture
def taught(store: Store, data: OwnTraces, tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Manifest:
    """The tiny base, taught the traces of the very questions that it will be asked."""
    tokens = ThinkTokens.of(tokenizer)
    grow_embeddings(tiny_model, len(tokenizer), [tokens.think, tokens.end_think])
    questions = [dataclasses.replace(each, split="test") for each in asked_questions(data) if each.split == "train"]
    derived = [example.row for example in thought_examples(tokenizer, questions, [Generated("", 0, ended=True)] * len(questions))]
    # A reply begins with <think>: the prompt's last token is learnt as well.
    rows = [dataclasses.replace(row, prompt=row.prompt[:-1], thought=(row.prompt[-1], *row.thought)) for row in derived]
    schedule = Schedule(
        steps=150,
        batch=8,
        learning_rate=5e-3,
        final_rate_share=0.1,
        warmup_steps=10,
        weight_decay=0,
        betas=(0.9, 0.95),
        max_gradient_norm=1,
    )
    with torch.random.fork_rng():
        train_on_text(tiny_model, rows, tokens, TextTraining(schedule, thought_share=1.0, seed=0), tmp_path, lambda done, total: None)
    folder = tmp_path / "taught"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return make_base(store, FolderBase(kind="folder", path=str(folder), sha256=file_sha256(folder / "model.safetensors"), label="taught"))
