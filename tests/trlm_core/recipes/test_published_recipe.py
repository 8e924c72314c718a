"""The recipe trlm-135m equals the technical report's Tables 1 to 6, value by value, and its variants differ in nothing unexpected."""

from typing import Any

import pytest

from trlm_core.artifacts.fingerprint import changed_fields
from trlm_core.plan import make_plan
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.load import load_recipe
from trlm_core.recipes.schema import DPOTraining, HubBase, HubSource, Recipe, SFTTraining

SMOLTALK = "HuggingFaceTB/smoltalk2"
TABLE_1 = [
    (SMOLTALK, "SFT", "smoltalk_smollm3_smol_magpie_ultra_no_think", 33_500),
    (SMOLTALK, "SFT", "smoltalk_smollm3_smol_summarize_no_think", 7_500),
    (SMOLTALK, "SFT", "smoltalk_smollm3_smol_rewrite_no_think", 7_500),
    (SMOLTALK, "SFT", "smoltalk_smollm3_systemchats_30k_no_think", 2_500),
    (SMOLTALK, "SFT", "smoltalk_smollm3_explore_instruct_rewriting_no_think", 2_500),
    (SMOLTALK, "SFT", "tulu_3_sft_personas_instruction_following_no_think", 2_500),
    (SMOLTALK, "SFT", "smoltalk_smollm3_everyday_conversations_no_think", 2_000),
]
TABLE_2 = [
    (SMOLTALK, "Mid", "Llama_Nemotron_Post_Training_Dataset_reasoning_r1", 40_200),
    (SMOLTALK, "Mid", "OpenThoughts3_1.2M", 20_000),
    (SMOLTALK, "SFT", "multi_turn_reasoning_if_think", 10_000),
    (SMOLTALK, "SFT", "aya_dataset_Qwen3_32B_think", 5_000),
    (SMOLTALK, "SFT", "smoltalk_everyday_convs_reasoning_Qwen3_32B_think", 2_000),
    (SMOLTALK, "SFT", "s1k_1.1_think", 800),
]
TABLE_3 = [("scottgeng00/olmo-3-preference-mix-deltas_reasoning-yolo_scottmix-DECON-chfiltered", None, "train", 50_000)]
OF_ALL_TABLES = {"Per-device batch size": 32, "Gradient accumulation": 4, "Gradient checkpointing": True, "Warmup ratio": 0.1}
ROWS: dict[str, dict[str, Any]] = {
    "stage1_sft": {
        **OF_ALL_TABLES,
        "Base model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "Epochs": 3,
        "Learning rate": 3e-4,
        "Weight decay": 0.01,
        "Max grad norm": 1.0,
        "Loss": "dft",
        "Max length": 4096,
        "Scheduler": ("cosine", None),
        "NEFTune noise alpha": 0.01,
    },
    "stage2_sft_think": {
        **OF_ALL_TABLES,
        "Base model": "stage1_sft",
        "Special tokens": ("<think>", "</think>"),
        "Epochs": 1,
        "Learning rate": 3e-4,
        "Weight decay": 0.02,
        "Max grad norm": 1.0,
        "Loss": "nll",  # inferred: Table 5 names none
        "Max length": 4096,
        "Scheduler": ("cosine", None),
        "NEFTune noise alpha": 0.02,
    },
    "stage3_dpo": {
        **OF_ALL_TABLES,
        "Base model": "stage2_sft_think",
        "Epochs": 1,
        "Learning rate": 1e-5,
        "Weight decay": 0.01,
        "Max grad norm": 0.2,
        "DPO beta": 0.1,
        "DPO loss": "apo_zero",
        "Max prompt length": 1048,
        "Max length": 2048,
        "Scheduler": ("cosine_with_min_lr", 0.1),
    },
}
EXECUTION_OF_ALL_TABLES = {
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": True,
    "save_steps": 300,
}
SYSTEM_1 = "You are a helpful AI assistant named Tiny Reasoning Language Model, trained by Shekswess."
SYSTEM_2 = (
    SYSTEM_1
    + " You are an assistant, with the ability to do reasoning. When performing reasoning always perform your full chain of thought"
    " inside <think>...</think> before giving a final answer."
)
SYSTEM_3 = SYSTEM_2 + " You are always reasoning so always use <think> </think> tags."


@pytest.fixture(scope="module")
def report() -> Recipe:
    return load_recipe("trlm-135m", variant="report")


@pytest.mark.parametrize(("stage", "table"), [("stage1_sft", TABLE_1), ("stage2_sft_think", TABLE_2), ("stage3_dpo", TABLE_3)])
def test_blends_are_tables_1_to_3(report: Recipe, stage: str, table: list[tuple[str, str | None, str, int]]):
    sources = report.stage(stage).blend.sources
    assert all(isinstance(source, HubSource) for source in sources)
    assert [(s.repo, s.subset, s.split, s.num_examples) for s in sources if isinstance(s, HubSource)] == table


def test_blends_hold_58000_78000_and_50000_rows(report: Recipe):
    assert [sum(source.num_examples for source in stage.blend.sources) for stage in report.stages] == [58_000, 78_000, 50_000]


def test_sft_sources_drop_chat_template_kwargs_and_the_pairs_drop_legacy_metadata_and_rename_dataset(report: Recipe):
    shapes = [{(source.drop, tuple(source.rename.items())) for source in stage.blend.sources} for stage in report.stages]  # type: ignore[union-attr]
    assert shapes == [
        {(("chat_template_kwargs",), ())},
        {(("chat_template_kwargs",), ())},
        {(("prompt", "category", "prompt_id"), (("dataset", "source"),))},
    ]


@pytest.mark.parametrize("variant", ["report", "reference", "improved"])
@pytest.mark.parametrize(("stage", "rows"), ROWS.items())
def test_every_row_of_tables_4_to_6_stands_in_every_variant(stage: str, rows: dict[str, Any], variant: str):
    """But for the names of the published datasets and checkpoints, which this pipeline builds itself."""
    recipe = load_recipe("trlm-135m", variant=variant)
    chosen = recipe.stage(stage)
    training, rendering, execution = chosen.training, chosen.rendering, chosen.reported_execution
    assert execution is not None
    found = {
        "Base model": recipe.base.repo if chosen.parent == "base" and isinstance(recipe.base, HubBase) else chosen.parent,
        "Epochs": training.epochs,
        "Per-device batch size": execution.per_device_train_batch_size,
        "Gradient accumulation": execution.gradient_accumulation_steps,
        "Gradient checkpointing": execution.gradient_checkpointing,
        "Learning rate": training.learning_rate,
        "Weight decay": training.weight_decay,
        "Warmup ratio": training.warmup_ratio,
        "Max grad norm": training.max_grad_norm,
        "Max length": rendering.max_length,
        "Scheduler": (training.lr_scheduler_type, training.min_lr_rate),
    }
    if isinstance(training, DPOTraining):
        found |= {"DPO beta": training.beta, "DPO loss": training.loss_type, "Max prompt length": rendering.max_prompt_length}
    else:
        found |= {"Loss": training.loss_type, "NEFTune noise alpha": training.neftune_noise_alpha}
    if rendering.new_tokens is not None:
        found["Special tokens"] = rendering.new_tokens.tokens
    assert found == rows


def test_trainers_are_sft_sft_dpo(report: Recipe):
    assert [type(stage.training) for stage in report.stages] == [SFTTraining, SFTTraining, DPOTraining]


def test_a_step_has_the_tables_32_x_4_sequences_and_their_execution_is_recorded(report: Recipe):
    for stage in report.stages:
        assert stage.training.sequences_per_step == 32 * 4
        assert stage.reported_execution is not None
        assert stage.reported_execution.model_dump() == EXECUTION_OF_ALL_TABLES


def test_every_stage_starts_from_the_one_before_and_the_first_from_smollm2(report: Recipe):
    assert isinstance(report.base, HubBase)
    assert report.base.repo == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert [stage.parent for stage in report.stages] == ["base", "stage1_sft", "stage2_sft_think"]


def test_think_tokens_come_with_stage_2_and_stay(report: Recipe):
    new = [stage.rendering.new_tokens and stage.rendering.new_tokens.tokens for stage in report.stages]
    assert new == [None, ("<think>", "</think>"), None]
    assert [report.added_tokens(stage) for stage in report.stages] == [(), ("<think>", "</think>"), ("<think>", "</think>")]


def test_system_prompts_grow_from_stage_to_stage(report: Recipe):
    assert [stage.rendering.system_prompt for stage in report.stages] == [SYSTEM_1, SYSTEM_2, SYSTEM_3]


def test_the_report_s_stages_take_1359_609_and_390_steps(report: Recipe):
    assert [stage.steps for stage in make_plan(report, Execution()).stages] == [58_000 * 3 // 128, 78_000 // 128, 50_000 // 128]
    assert make_plan(report, Execution()).stages[0].steps == 1_359


def test_variants_differ_in_template_labels_precision_stage_3_s_system_turn_and_bad_steps_and_in_nothing_else(report: Recipe):
    reference = _changed(report, load_recipe("trlm-135m", variant="reference"))
    improved = _changed(report, load_recipe("trlm-135m", variant="improved"))
    assert reference == {
        "variant",
        "stages.0.rendering.template",
        "stages.0.training.precision",
        "stages.1.rendering.template",
        "stages.1.training.precision",
        "stages.2.rendering.template",
        "stages.2.rendering.system_prompt",
        "stages.2.training.precision",
    }
    bad_steps = {f"stages.{number}.training.{name}" for number in range(3) for name in ("bad_steps", "max_grad_norm_ratio")}
    losses = {"stages.0.rendering.loss_on", "stages.1.rendering.loss_on"}
    assert {key for key in improved if ".filters" not in key} == {"variant", *losses, *bad_steps}
    assert all(stage.blend.filters is None for stage in report.stages)


def test_the_reference_variant_is_what_the_report_s_code_did():
    reference = load_recipe("trlm-135m", variant="reference")
    assert [(s.rendering.template, s.training.precision, s.rendering.system_prompt) for s in reference.stages] == [
        ("reference", "bf16", SYSTEM_1),
        ("reference", "bf16", SYSTEM_2),
        ("reference", "bf16", SYSTEM_2),
    ]
    assert [stage.rendering.loss_on for stage in reference.stages[:2]] == ["all", "all"]


def test_the_improved_variant_learns_from_replies_in_mixed_precision():
    improved = load_recipe("trlm-135m", variant="improved")
    assert {(s.rendering.template, s.training.precision, s.rendering.loss_on) for s in improved.stages} == {
        ("clean", "bf16_mixed", "assistant")
    }


def _changed(before: Recipe, after: Recipe) -> set[str]:
    return {line.split(":")[0] for line in changed_fields(before.model_dump(mode="json"), after.model_dump(mode="json"))}
