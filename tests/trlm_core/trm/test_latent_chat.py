"""Talking to checkpoints, latent ones and others, through the command."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from tests.trlm_core.conftest import BuiltTRM
from trlm_core.inference.chat import chat_prompt
from trlm_core.trm.chat_checkpoint import ChatSettings, open_chat
from trlm_core.trm.latent_chat import LatentChat
from trlm_core.trm.latent_generation import Decoding

PUZZLE = "0300103000010002"
SETTINGS = ChatSettings(thinking="latent", steps=None, halting=None, max_new_tokens=18, device="cpu")


def talk(*arguments: str, said: str | None = None) -> tuple[int, list[str]]:
    done = CliRunner().invoke(app, ["chat", *arguments, "--max-new-tokens", "18"], input=said)
    return done.exit_code, done.output.strip().splitlines()


def test_each_step_of_a_latent_thought_is_shown_then_the_answer(built_trm: BuiltTRM):
    code, lines = talk(str(built_trm.folder("phase2")), "--thinking", "latent", "--steps", "2", "--prompt", PUZZLE)
    assert code == 0
    assert [re.sub(r"\d+ %   .*", "% thought", line) for line in lines[:2]] == [
        "supervision step  1   halts   % thought",
        "supervision step  2   halts   % thought",
    ]
    assert lines[2] == "used 2 of 2 supervision steps"
    assert lines[3].startswith("answer")


def test_a_thought_takes_the_checkpoints_own_number_of_steps_where_nobody_says_another(built_trm: BuiltTRM):
    _, lines = talk(str(built_trm.folder("phase2")), "--thinking", "latent", "--prompt", PUZZLE)
    assert "used 3 of 3 supervision steps" in lines


def test_with_halting_the_head_says_when(built_trm: BuiltTRM):
    chat = open_chat(built_trm.folder("phase2"), dataclasses.replace(SETTINGS, halting=True, steps=5))
    assert isinstance(chat, LatentChat)
    chat.model.thinker.trm.core.halt_head.bias.data.fill_(50.0)
    assert "used 1 of 5 supervision steps" in list(chat.reply(PUZZLE))
    chat.model.thinker.trm.core.halt_head.bias.data.fill_(-50.0)
    assert "used 5 of 5 supervision steps" in list(chat.reply(PUZZLE))


def test_the_answer_is_what_generate_writes(built_trm: BuiltTRM):
    chat = open_chat(built_trm.folder("phase3"), SETTINGS)
    assert isinstance(chat, LatentChat)
    ids_1L = torch.tensor([chat_prompt(chat.tokenizer, PUZZLE)])
    (row,) = chat.model.generate(ids_1L, torch.ones_like(ids_1L), Decoding(18), "latent")
    written = str(chat.tokenizer.decode(row.new, skip_special_tokens=True)).strip()
    assert list(chat.reply(PUZZLE))[-1] == f"answer    {written}"


def test_prompts_are_read_from_the_terminal_line_by_line(built_trm: BuiltTRM):
    code, lines = talk(str(built_trm.folder("phase2")), "--thinking", "latent", said=f"{PUZZLE}\n\n{PUZZLE}\n")
    assert code == 0
    assert sum(line.startswith("answer") for line in lines) == 2


@pytest.mark.parametrize("role", ["phase2", "base"])
@pytest.mark.parametrize("thinking", ["text", "off"])
def test_any_checkpoint_answers_with_a_thought_in_text_or_none(built_trm: BuiltTRM, role: str, thinking: str):
    code, lines = talk(built_trm.made[role].address, "--store", str(built_trm.store.root), "--thinking", thinking, "--prompt", PUZZLE)
    assert code == 0
    assert lines
    assert thinking == "text" or [line[:6] for line in lines] == ["answer"]


def test_a_store_may_have_moved_since(built_trm: BuiltTRM, tmp_path: Path):
    for role in ("base", "phase2"):
        shutil.copytree(built_trm.folder(role), tmp_path / "moved" / built_trm.made[role].address)
    config = tmp_path / "moved" / built_trm.made["phase2"].address / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(tmp_path / "gone")}))
    code, lines = talk(str(config.parent), "--thinking", "latent", "--prompt", PUZZLE)
    assert code == 0, lines


def test_any_device_that_there_is(built_trm: BuiltTRM):
    """`auto` is a word of ours, not torch's."""
    for role, thinking in (("phase2", "latent"), ("base", "off")):
        code, lines = talk(str(built_trm.folder(role)), "--thinking", thinking, "--device", "auto", "--prompt", PUZZLE)
        assert code == 0, lines


def test_a_language_model_is_talked_to_without_the_extra(built_trm: BuiltTRM):
    hidden = "import sys; sys.modules |= {'pytorch_lightning': None, 'peft': None}; sys.argv[0] = 'trlm'; from flows.cli import app; app()"
    for role, code in (("base", 0), ("phase2", 2)):
        arguments = [sys.executable, "-c", hidden, "chat", str(built_trm.folder(role)), "--thinking", "off", "--prompt", PUZZLE]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert ("pip install 'trlm[trm]'" in done.stderr) == (role == "phase2")


def test_an_artifact_without_a_model_is_one_line(built_trm: BuiltTRM):
    code, lines = talk(built_trm.made["pause"].address, "--store", str(built_trm.store.root), "--prompt", PUZZLE)
    assert code == 2
    (line,) = lines
    assert "wanted a language model or a thinker with its config.json, got history.jsonl, manifest.json, pauses.safetensors" in line


MISTAKES = {
    "a language model asked for latents": (["{base}", "--thinking", "latent", "--prompt", PUZZLE], "say text or off"),
    "nothing there": (["no/such", "--prompt", PUZZLE], "wanted a folder with config.json"),
    "a text that the tokenizer does not know": (["{phase2}", "--thinking", "latent", "--prompt", "hello"], "'hello'"),
    "a prompt longer than the context": (["{phase2}", "--thinking", "latent", "--prompt", "1" * 95], "positions"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(built_trm: BuiltTRM, case: str):
    arguments, words = MISTAKES[case]
    code, lines = talk(*(each.format(**{role: built_trm.folder(role) for role in ("base", "phase2")}) for each in arguments))
    assert code == 2
    assert len(lines) == 1
    assert words in lines[0]
