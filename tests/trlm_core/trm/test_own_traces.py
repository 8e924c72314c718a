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
from trlm_core.text.tokenizer import load_tokenizer, prompt_ids, stage_tokenizer
from trlm_core.training.new_tokens import grow_embeddings
from trlm_core.trm import own_traces
from trlm_core.trm.own_traces import (
    Asked,
    asked_questions,
    asking_tokenizer,
    check_prompts,
    families_kept,
    make_own_traces,
    own_traces_spec,
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


def test_a_family_that_the_checkpoint_answers_in_one_way_is_named(caplog: pytest.LogCaptureFixture):
    answers = {"letters": ["1"] * 11, "sums": ["7"] * 9 + ["8"], "few": ["3"] * 9}
    asked = [Asked("train", 0, dataclasses.replace(SUM, family=name, answer=each)) for name, all_of in answers.items() for each in all_of]
    replies = [Generated(f"<think>\n4 + 3.\n</think>\n{each.problem.answer}", 12, ended=True) for each in asked]
    unlike = [Asked("train", 0, dataclasses.replace(SUM, family="letters", answer="2")), Asked("test", 0, SUM)]  # wrong; not of train
    kept = families_kept([*asked, *unlike], [*replies, replies[0], Generated(RIGHT, 12, ended=True)])
    assert kept == {
        "letters": {"verified": 11, "commonest_answer": 1.0},
        "sums": {"verified": 10, "commonest_answer": 0.9},
        "few": {"verified": 9, "commonest_answer": 1.0},
    }
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("letters: wanted thoughts that differ, got the answer 1 in 11 of 11 verified replies; leave the family out")


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


def said_by(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    return str(tokenizer.decode(prompt_ids(tokenizer, [{"role": "user", "content": question}])))


@pytest.fixture
def smollm3(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """What its template does in think mode, in short."""
    tokenizer.chat_template = (
        "{{- '<|im_start|>system\\nToday Date: ' ~ strftime_now('%d %B %Y') ~ '\\n' -}}"
        "{%- if messages[0].role == 'system' -%}{{- messages[0].content -}}"
        "{%- else -%}{{- 'Use the format: <think> Thought section </think> Solution section.' -}}{%- endif -%}"
        "{{- '<|im_end|>\\n' -}}{%- for each in messages if each.role != 'system' -%}"
        "{{- '<|im_start|>' ~ each.role ~ '\\n' ~ each.content ~ '<|im_end|>\\n' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
    return tokenizer


def test_a_system_turn_and_a_date_of_the_recipe_s_are_in_every_prompt_that_the_tokenizer_writes(
    smollm3: PreTrainedTokenizerBase, data: OwnTraces, tmp_path: Path
):
    asking = asking_tokenizer(smollm3, data.model_copy(update={"system_prompt": 'Say "7".\n', "today": "01 November 2025"}))
    check_prompts(asking, [Asked("train", 0, SUM)], max_new_tokens=40, context=512)
    asking.save_pretrained(tmp_path)
    said = said_by(load_tokenizer(tmp_path), "4 + 3?")
    assert said.startswith('<|im_start|>system\nToday Date: 01 November 2025\nSay "7".\n<|im_end|>\n<|im_start|>user\n4 + 3?<|im_end|>')
    own = prompt_ids(asking, [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "4 + 3?"}])
    assert "2025\nBe kind.<|im_end|>" in str(asking.decode(own))


def test_a_recipe_that_says_nothing_of_the_prompt_leaves_the_template_as_it_is(tokenizer: PreTrainedTokenizerBase, data: OwnTraces):
    before = tokenizer.chat_template
    assert asking_tokenizer(tokenizer, data).chat_template == before


def test_a_template_s_tags_and_date_are_errors_before_the_first_reply(smollm3: PreTrainedTokenizerBase, data: OwnTraces):
    template = smollm3.chat_template
    with pytest.raises(ThoughtDataError, match=r"got the day's date from the base's template; set data\.today"):
        check_prompts(asking_tokenizer(smollm3, data), [Asked("train", 5, SUM)], 40, 512)
    smollm3.chat_template = template
    asking = asking_tokenizer(smollm3, data.model_copy(update={"today": "01 November 2025"}))
    with pytest.raises(
        ThoughtDataError, match="chain_sum/train/5: wanted a prompt without a tag of a thought, got <think> </think>; set data"
    ):
        check_prompts(asking, [Asked("train", 5, SUM)], 40, 512)


def test_a_prompt_whose_longest_reply_has_no_room_is_an_error_before_the_first_reply(tokenizer: PreTrainedTokenizerBase):
    length = len(prompt_ids(tokenizer, [{"role": "user", "content": SUM.question}]))
    check_prompts(tokenizer, [Asked("train", 5, SUM)], 40, context=length + 40)
    with pytest.raises(
        ThoughtDataError, match=f"train/5: wanted at most the base's {length + 37} positions, got {length} and 40 of a reply; .* by 3"
    ):
        check_prompts(tokenizer, [Asked("train", 5, SUM)], 40, context=length + 37)


def test_the_3b_recipe_has_a_system_turn_without_a_tag_and_a_date():
    data = load_trm_recipe("trm-smollm3-3b").data
    assert isinstance(data, OwnTraces)
    assert data.today is not None
    assert data.system_prompt is not None
    assert "think>" not in data.system_prompt


def test_what_a_recipe_says_of_the_prompt_is_in_the_fingerprint(recipe: TRMRecipe, data: OwnTraces, taught: Manifest):
    told = [data, data.model_copy(update={"today": "1"}), data.model_copy(update={"system_prompt": "1"})]
    assert len({own_traces_spec(recipe, each, taught).fingerprint for each in told}) == 3


def test_chunks_that_are_kept_are_not_generated_again_and_one_that_was_cut_off_is(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, data: OwnTraces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(own_traces, "QUESTIONS_AT_ONCE", 2)
    grow_embeddings(tiny_model, len(tokenizer), [ThinkTokens.of(tokenizer).think, ThinkTokens.of(tokenizer).end_think])
    questions, kept = asked_questions(data)[:5], tmp_path / "replies.jsonl"
    told: list[tuple[int, int]] = []
    whole = reply_to(tiny_model, tokenizer, questions, 4, kept, lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]
    earlier = '{"ended":true,"text":"from an earlier process","tokens":3}\n'
    kept.write_text(3 * earlier + kept.read_text().splitlines()[3][:20])  # killed in its second chunk, in a line
    told.clear()
    resumed = reply_to(tiny_model, tokenizer, questions, 4, kept, lambda done, total: told.append((done, total)))
    assert told == [(4, 5), (5, 5)]
    assert [each.text for each in resumed[:2]] == ["from an earlier process"] * 2
    assert resumed[2:] == whole[2:]
    assert len(kept.read_text().splitlines()) == 5
    assert reply_to(tiny_model, tokenizer, questions, 4, kept, lambda done, total: pytest.fail("all of them are there")) == resumed


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
