"""Bad input gets one clear line, exit code 2, before any work; and the store is as it was."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HOLDER = """
import sys, time
from trlm_core.artifacts.store import Store
with Store.open(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(120)
"""

BAD_SETTINGS = {
    "an unknown key": ("stages.stage1_sft.training.lr=1", ["wanted one of", "learning_rate", "'lr'"]),
    "an unknown stage": ("stages.stage9.training.epochs=1", ["wanted one of stage1_sft", "'stage9'"]),
    "an unknown value": ("stages.stage1_sft.training.loss_type=mse", ["loss_type", "'nll' or 'dft'", "'mse'"]),
    "a negative count": ("stages.stage1_sft.training.sequences_per_step=-8", ["sequences_per_step", "greater than 0", "-8"]),
    "a stage without its parent": ("stages.stage2_sft_think.parent=stage3_dpo", ["wanted one of base, stage1_sft", "'stage3_dpo'"]),
    "no key at all": ("learning_rate", ["wanted key=value"]),
    "a missing offline package": ("base.package=no-such-package", ["wanted package no-such-package==0.1.2", "got nothing installed"]),
    "another version of a package": ("generator='9.9'", ["wanted reasoning-gym==9.9", "got 0.1.25"]),
    "fewer rows than a step": ("stages.stage3_dpo.training.sequences_per_step=9999", ["wanted at least 9999 rows"]),
    "an unknown kind of fault": ("stages.stage3_dpo.blend.unseen_faults=[typo]", ["wanted some of", "typo"]),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_bad_setting_is_one_clear_line(case: str, trlm: Any, tmp_path: Path) -> None:
    setting, words = BAD_SETTINGS[case]
    done = trlm("run", "trlm-135m-local", "--set", setting, "--store", str(tmp_path / "runs"))
    assert_one_line(done, words)
    assert not list(tmp_path.glob("runs/*/*/*")), "nothing is built"


def test_an_unknown_recipe_is_answered_with_those_there_are(trlm: Any, tmp_path: Path) -> None:
    assert_one_line(trlm("run", "trlm-7b", "--store", str(tmp_path)), ["wanted one of trlm-135m, trlm-135m-local", "'trlm-7b'"])


def test_a_variant_is_never_implied(trlm: Any, tmp_path: Path) -> None:
    assert_one_line(trlm("run", "trlm-135m", "--store", str(tmp_path)), ["wanted --variant improved | reference | report"])


def test_a_store_that_cannot_be_written_is_named(trlm: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert_one_line(trlm("run", "trlm-135m-local", "--store", str(tmp_path / "file" / "runs")), [str(tmp_path / "file"), "--store"])


def test_a_second_run_on_a_held_store_says_who_holds_it(trlm: Any, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = trlm("run", "trlm-135m-local", "--store", str(tmp_path))
        holder.kill()
    assert_one_line(done, [f"process {holder.pid}", "choose another --store"])


def test_a_dry_run_prints_recipe_and_plan_and_leaves_nothing(trlm: Any, tmp_path: Path) -> None:
    done = trlm("run", "trlm-135m-local", "--dry-run", "--store", str(tmp_path / "runs"))
    assert done.code == 0
    for words in ("name: trlm-135m-local", "learning_rate", "rows", "tokens", "steps", "minutes", "GiB of disk", "GiB of memory"):
        assert words in done.out
    assert not (tmp_path / "runs").exists()


def test_the_report_s_recipe_is_shown_resolved(trlm: Any) -> None:
    done = trlm("recipe", "show", "trlm-135m", "--variant", "report", "--json")
    assert done.code == 0
    assert '"variant": "report"' in done.out


def test_a_store_that_is_not_there_is_not_made_by_looking(trlm: Any, tmp_path: Path) -> None:
    assert_one_line(trlm("store", "ls", "--store", str(tmp_path / "none")), ["wanted a store", "got nothing there"])
    assert not (tmp_path / "none").exists()


def assert_one_line(done: Any, words: list[str]) -> None:
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert line.startswith("trlm: ")
    for each in words:
        assert each in line
