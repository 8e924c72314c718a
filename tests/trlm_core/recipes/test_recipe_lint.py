"""The recipe lint: every recipe that comes with trlm passes, and broken ones do not."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
ELSEWHERE = """
import pathlib, sys
import trlm_core.recipes.load as load
load.RECIPES = pathlib.Path(sys.argv[1])
from tests.recipe_lint import main
sys.exit(main())
"""
BROKEN = {
    "parent": ("parent: stage1_sft", "parent: stage0", "wanted one of base, stage1_sft, got 'stage0'"),
    "loss": ("loss_type: dft", "loss_type: dtf", "got 'dtf'"),
    "family": ("- lcm", "- lcmm", "lcmm"),
    "fault": ("- misread", "- misreed", "stage3_dpo.blend.faults: wanted some of"),
    "steps": ("sequences_per_step: 4", "sequences_per_step: 4000", "wanted 4000 rows for one step, got 40"),
}


def lint(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_recipe_variant_and_budget_passes_with_a_line_each():
    done = lint("-m", "tests.recipe_lint")
    assert done.returncode == 0, done.stderr
    for words in (
        "trlm-135m report ",
        "trlm-135m reference ",
        "trlm-135m improved ",
        "stage1_sft 58,000 rows 1,359 steps",
        "trlm-135m-local ",
        "trm-acceptance ",
        "trm-smollm2-135m ",
        "trm-smollm2-135m-laptop ",
        "trm-smollm3-3b ",
    ):
        assert words in done.stdout
    for budget in (ROOT / "trlm_core/recipes").glob("*/budgets/*.yaml"):
        assert f"{budget.parent.parent.name} {budget.stem} " in done.stdout


def test_broken_recipes_end_with_1_and_the_reason_of_each(tiny_recipe_file: Path, tmp_path: Path):
    text = tiny_recipe_file.read_text()
    for name, (old, new, _) in {**BROKEN, "whole": ("name", "name", "")}.items():
        assert old in text
        (tmp_path / "recipes" / name).mkdir(parents=True)
        (tmp_path / "recipes" / name / "recipe.yaml").write_text(text.replace(old, new))
    done = lint("-c", ELSEWHERE, str(tmp_path / "recipes"))
    assert done.returncode == 1
    assert done.stdout.startswith("whole ")
    reasons = dict(line.split(": ", 1) for line in done.stderr.splitlines() if line.split(": ")[0] in BROKEN)
    assert [name for name, (_, _, reason) in BROKEN.items() if reason not in reasons.get(name, "")] == [], done.stderr
