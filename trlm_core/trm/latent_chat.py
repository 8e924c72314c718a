"""Talking to a latent-thought checkpoint, with every supervision step of its thought shown.

supervision step  1   halts  12 %   _42134...      what the expander reads out of the latents after it, and how sure the head is to be done
used 4 of 4 supervision steps
answer    1342...
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from trlm_core.artifacts.manifest import MANIFEST_NAME, Manifest
from trlm_core.artifacts.store import Store
from trlm_core.inference.chat import chat_prompt, told
from trlm_core.text.thoughts import OPEN
from trlm_core.training.checkpoint import load_model
from trlm_core.trm.answers import Writing, write_answers
from trlm_core.trm.chat_checkpoint import ChatSettings
from trlm_core.trm.latent_checkpoint import load_latent_checkpoint, load_latent_tokenizer
from trlm_core.trm.latent_generation import Decoding, Thinking
from trlm_core.trm.latent_thought_model import EncodedPrompt, LatentThoughtModel
from trlm_core.trm.thought_reading import likeliest_length, read_thoughts_out, thought_steps


@dataclass(frozen=True)
class ShownStep:
    step: int  # supervision step
    p_halt: float
    thought: str


@dataclass(frozen=True)
class ShownThought:
    steps: tuple[ShownStep, ...]  # as many as were used
    answer: str


@dataclass(frozen=True)
class LatentChat:
    model: LatentThoughtModel
    tokenizer: PreTrainedTokenizerBase
    thinking: Thinking
    steps: int
    halting: bool
    max_new_tokens: int

    def reply(self, prompt: str) -> Iterator[str]:
        ids = chat_prompt(self.tokenizer, prompt)
        yield from self._in_latents(ids) if self.thinking == "latent" else self._in_text(ids)

    def thought(self, ids: list[int]) -> ShownThought:
        """Raises ValueError for a prompt that leaves no room in the language model's context."""
        prompt = self._encoded(ids)
        taken = []
        for each in thought_steps(self.model, prompt, self.steps):
            taken.append(each)
            if self.halting and each.q_logits_B.item() > 0:
                break
        length = likeliest_length(self.model, taken[-1].v_BMd)
        mask_1C = torch.ones(1, length, dtype=torch.bool, device=taken[-1].v_BMd.device)
        shown = tuple(
            ShownStep(number, each.q_logits_B.sigmoid().item(), read_thoughts_out(self.model, each.v_BMd, mask_1C, self.tokenizer)[0])
            for number, each in enumerate(taken, start=1)
        )
        u_BMD = self.model.thinker.embed_thought(taken[-1].v_BMd)
        (answer,) = write_answers(self.model, prompt, u_BMD.detach(), Writing(self.max_new_tokens, temperature=None))
        return ShownThought(shown, str(self.tokenizer.decode(list(answer), skip_special_tokens=True)).strip())

    def _in_latents(self, ids: list[int]) -> Iterator[str]:
        thought = self.thought(ids)
        for step in thought.steps:
            yield f"supervision step {step.step:>2}   halts {100 * step.p_halt:>3.0f} %   {step.thought}"
        yield f"used {len(thought.steps)} of {self.steps} supervision steps"
        yield f"answer    {thought.answer}"

    def _in_text(self, ids: list[int]) -> Iterator[str]:
        ids_1L = torch.tensor([ids])
        (row,) = self.model.generate(ids_1L, torch.ones_like(ids_1L), Decoding(self.max_new_tokens), self.thinking)
        kept = row.new[:-1] if row.new[-1:] == [self.model.tokens.eos] else row.new
        begun = OPEN if self.thinking == "text" else ""  # at the prompt's end
        return told(begun + str(self.tokenizer.decode(kept)), has_thought=self.thinking == "text")

    @torch.no_grad()
    def _encoded(self, ids: list[int]) -> EncodedPrompt:
        think = self.model.tokens.think
        ids_1L = torch.tensor([ids if ids[-1:] == [think] else [*ids, think]], device=self.model.thinker.trm.slots_Md.device)
        return self.model.encode_prompt(ids_1L, torch.ones_like(ids_1L))


def latent_chat(folder: Path, settings: ChatSettings) -> LatentChat:
    """Raises LatentCheckpointError."""
    base = _base_in_store(folder)
    model = load_latent_checkpoint(folder, None if base is None else load_model(base, "float32")).to(settings.device)
    halting = model.config.eval_halting if settings.halting is None else settings.halting
    steps = settings.steps or model.config.eval_steps
    return LatentChat(model, load_latent_tokenizer(folder), settings.thinking, steps, halting, settings.max_new_tokens)


def _base_in_store(folder: Path) -> Path | None:
    """The base that a checkpoint of a store was trained on, wherever the store lies now; None outside a store."""
    path = folder.resolve() / MANIFEST_NAME
    if not path.is_file():
        return None
    manifest = Manifest.model_validate_json(path.read_text())
    store = Store.open(folder.resolve().parents[3])
    bases = [each for each in store.manifests() if each.fingerprint == manifest.inputs.get("base")]
    return store.folder(bases[0]) if bases else None
