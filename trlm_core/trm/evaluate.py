"""How many answers are right, row by row: without a thought, with one in text, with latents; and what each answer costs.

    direct           an empty thought                     pre_latents     the prompt's latents as they are, without the TRM
    text             a thought that it writes itself      mean_latent     the mean thought, the same for every prompt
    text_oracle      the right thought in text            pause           constants that were learned
    oracle_latents   the right thought in latents         nonrecursive    the TRM's parameters without its recursion
    direct_tuned     another language model, fine-tuned   trm/N, trm/halting    after N steps, or as its own head decides
B batch, L positions of a prompt, M latents, d the TRM's width, D the language model's, S supervision steps.
"""
# ruff: noqa: N815 - tensor names carry their shape

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trlm_core.recipes.trm_schema import Phase2Gate, TRMEvaluation
from trlm_core.trm.answer_cost import Weights, Work, as_tokens, flops
from trlm_core.trm.answers import Ids, Writing, exact, up_to_eos, write_answers
from trlm_core.trm.controls import mean_thought
from trlm_core.trm.hidden_states import embed
from trlm_core.trm.latent_generation import Decoding
from trlm_core.trm.latent_thought_model import EncodedPrompt, LatentThoughtModel
from trlm_core.trm.phase_rows import RowTable, live_states
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import ThoughtBatch, ThoughtRow, padded

Rival = TypeVar("Rival")
TRM, HALTING = "trm", "trm/halting"


@dataclass(frozen=True)
class Rivals:
    """What the TRM is measured against, where it was trained."""

    nonrecursive: LatentThoughtModel | None
    pauses_1MD: Tensor | None
    direct_tuned: PreTrainedModel | None


@dataclass(frozen=True)
class EvaluationRow:
    """Numbers are means over the examples."""

    name: str
    exact: float
    standard_error: float
    steps: float | None  # supervision steps of a thought
    halt_accuracy: float | None  # how often the halting head, after the last of them, is right about the answer
    visible_tokens: float  # that the language model wrote
    latent_positions: int
    flops: float
    generated_token_equivalents: float
    seconds: float  # for all examples, in batches


@dataclass(frozen=True)
class Evaluation:
    """`dataclasses.asdict` of it is JSON."""

    examples: int
    language_model_parameters: int
    thinker_parameters: int
    rows: tuple[EvaluationRow, ...]

    def exact(self, name: str) -> float:
        return next(row.exact for row in self.rows if row.name == name)


@dataclass(frozen=True)
class Claim:
    """One line of a gate: a difference of exact-match accuracies."""

    name: str
    wanted: float  # at least
    got: float

    @property
    def holds(self) -> bool:
        return self.got >= self.wanted


@dataclass(frozen=True)
class _Answered:
    """Some examples' answers, and what was done for each."""

    answers: list[Ids] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    halts: list[bool] = field(default_factory=list)  # what the halting head thought of each; none where no TRM thought

    def add(self, other: "_Answered") -> None:
        self.answers.extend(other.answers)
        self.work.extend(other.work)
        self.halts.extend(other.halts)


@dataclass(frozen=True)
class _Asked:
    """A batch of examples, and the model that is asked."""

    model: LatentThoughtModel
    batch: ThoughtBatch
    rows: list[ThoughtRow]
    recipe: TRMEvaluation

    def prompt(self) -> EncodedPrompt:
        return self.model.encode_prompt(self.batch.prompt_ids_BL, self.batch.prompt_mask_BL)

    def after(self, u_BMD: Tensor, prompt: EncodedPrompt, *, is_compressed: bool = False, steps: Sequence[int] | None = None) -> _Answered:
        """After these latents."""
        answers = write_answers(self.model, prompt, u_BMD, Writing(self.recipe.max_new_tokens, temperature=None))
        work = [
            Work(
                prompt=len(row.prompt),
                written=len(answer),
                latents=u_BMD.shape[1],
                compressed=len(row.prompt) if is_compressed else 0,
                steps=steps[number] if steps is not None else 0,
            )
            for number, (row, answer) in enumerate(zip(self.rows, answers, strict=True))
        ]
        return _Answered(answers, work)


Ask = Callable[[_Asked], _Answered]


@torch.no_grad()
def evaluate(
    model: LatentThoughtModel, table: RowTable, recipe: TRMEvaluation, rivals: Rivals, on_row: Callable[[EvaluationRow], None]
) -> Evaluation:
    """Every row of the recipe over the table's first examples. Raises ValueError for a row whose rival there is not."""
    numbers, rows = range(min(recipe.examples, len(table))), []
    for name, asked_model, ask in _askers(model, recipe, rivals):
        rows.append(_row(name, asked_model, ask, table, numbers, recipe))
        on_row(rows[-1])
    return Evaluation(
        examples=len(numbers),
        language_model_parameters=sum(each.numel() for each in model.base.parameters()),
        thinker_parameters=sum(each.numel() for each in model.thinker.parameters()),
        rows=tuple(rows),
    )


def claims(evaluation: Evaluation, gate: Phase2Gate, steps: Sequence[int], thought_steps: int) -> tuple[Claim, ...]:
    """Whether the TRM helps. thought_steps: how many it is exported with; by `steps` its best is sought.

    Without a claim over the twin without recursion where none was trained.
    """
    trm, first = evaluation.exact(f"{TRM}/{thought_steps}"), evaluation.exact(f"{TRM}/{min(steps)}")
    best = max(evaluation.exact(f"{TRM}/{each}") for each in steps)
    wanted = {"direct": gate.over_direct, "nonrecursive": gate.over_nonrecursive}
    over = (Claim(f"over_{row.name}", wanted[row.name], trm - row.exact) for row in evaluation.rows if row.name in wanted)
    return (*over, Claim("best_over_first_step", gate.best_over_first_step, best - first))


def _askers(model: LatentThoughtModel, recipe: TRMEvaluation, rivals: Rivals) -> Iterator[tuple[str, LatentThoughtModel, Ask]]:
    """Each row's name, whom it asks, and how."""
    for name in recipe.rows:
        if name == TRM:
            yield from ((f"{TRM}/{steps}", model, _thinking(steps, halting=False)) for steps in recipe.steps)
            if recipe.halting:
                yield HALTING, model, _thinking(max(recipe.steps), halting=True)
        elif name == "nonrecursive":
            yield name, _present(rivals.nonrecursive, name), _thinking(1, halting=False)
        elif name == "direct_tuned":
            tuned = _present(rivals.direct_tuned, name)
            yield name, LatentThoughtModel(tuned, replace(model.config, lora=None), model.tokens, model.thinker).eval(), _direct
        elif name == "pause":
            yield name, model, _constant(_present(rivals.pauses_1MD, name))
        elif name == "mean_latent":
            yield name, model, _constant(mean_thought(model).unsqueeze(0))
        else:
            yield name, model, PLAIN[name]


def _present(rival: Rival | None, name: str) -> Rival:
    if rival is None:
        raise ValueError(f"evaluation.rows: wanted a trained rival for {name}, got none; train it (controls.{name}) or leave the row out")
    return rival


def _row(name: str, model: LatentThoughtModel, ask: Ask, table: RowTable, numbers: Sequence[int], recipe: TRMEvaluation) -> EvaluationRow:
    done, began, weights = _Answered(), time.monotonic(), Weights.of(model)
    for some, batch in table.batches(numbers):
        rows = [table.rows[number] for number in some]
        done.add(ask(_Asked(model, batch.to(model.thinker.trm.slots_Md.device), rows, recipe)))
    right = exact(done.answers, [table.rows[number] for number in numbers])
    share, cost = _mean(right), _mean([flops(weights, work) for work in done.work])
    steps = [work.steps for work in done.work if work.steps]
    return EvaluationRow(
        name=name,
        exact=share,
        standard_error=math.sqrt(share * (1 - share) / len(right)),
        steps=_mean(steps) if steps else None,
        halt_accuracy=_mean([one == other for one, other in zip(done.halts, right, strict=True)]) if done.halts else None,
        visible_tokens=_mean([work.written for work in done.work]),
        latent_positions=int(done.work[0].latents),
        flops=cost,
        generated_token_equivalents=as_tokens(weights, cost),
        seconds=time.monotonic() - began,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---------------------------------------------------------------------- how each row is asked


def _no_thought(prompt: EncodedPrompt) -> Tensor:
    return prompt.embeds_BLD[:, :0]


def _direct(asked: _Asked) -> _Answered:
    prompt = asked.prompt()
    return asked.after(_no_thought(prompt), prompt)


def _text(asked: _Asked) -> _Answered:
    """The longest thought of the batch, and as much again, is room for its own."""
    room = 2 * asked.batch.thought_ids_BC.shape[1] + asked.recipe.max_new_tokens
    written = asked.model.generate(asked.batch.prompt_ids_BL, asked.batch.prompt_mask_BL, Decoding(room), "text")
    work = [Work(prompt=len(row.prompt), written=len(made.new)) for row, made in zip(asked.rows, written, strict=True)]
    return _Answered([answer_of(made.new, asked.model.tokens) for made in written], work)


def answer_of(written: Sequence[int], tokens: ThinkTokens) -> Ids:
    """What comes after the thought; nothing where the thought does not end."""
    if tokens.end_think not in written:
        return ()
    return up_to_eos(written[written.index(tokens.end_think) + 1 :], tokens.eos)


def _text_oracle(asked: _Asked) -> _Answered:
    ids_BS, mask_BS = padded([(*row.prompt, *row.thought) for row in asked.rows], asked.model.tokens.pad, side="left")
    device = asked.batch.prompt_ids_BL.device
    embeds_BSD = embed(asked.model.base, ids_BS.to(device))
    prompt = asked.model.encode_embeds(embeds_BSD, embeds_BSD, mask_BS.to(device))
    answered = asked.after(_no_thought(prompt), prompt)
    read = [replace(work, thought_read=len(row.thought)) for work, row in zip(answered.work, asked.rows, strict=True)]
    return replace(answered, work=read)


def _oracle_latents(asked: _Asked) -> _Answered:
    model, batch = asked.model, asked.batch
    states = live_states(model)([], batch)
    latents_BMd = model.thinker.trm.compressor(states.post_BCD, batch.thought_mask_BC)
    return asked.after(model.thinker.embed(latents_BMd), asked.prompt(), is_compressed=True)


def _pre_latents(asked: _Asked) -> _Answered:
    prompt = asked.prompt()
    latents_BMd = asked.model.thinker.trm.compressor(prompt.h_BLD, prompt.mask_BL)
    return asked.after(asked.model.thinker.embed(latents_BMd), prompt, is_compressed=True)


def _constant(u_1MD: Tensor) -> Ask:
    def ask(asked: _Asked) -> _Answered:
        return asked.after(u_1MD.expand(len(asked.batch), -1, -1), asked.prompt())

    return ask


def _thinking(steps: int, halting: bool) -> Ask:
    def ask(asked: _Asked) -> _Answered:
        prompt = asked.prompt()
        thought = asked.model.think(prompt, steps, halting)
        answered = asked.after(thought.u_BMD, prompt, is_compressed=True, steps=thought.steps_B.tolist())
        return replace(answered, halts=(thought.q_logits_BS[:, -1] > 0).tolist())

    return ask


PLAIN: dict[str, Ask] = {
    "direct": _direct,
    "text": _text,
    "text_oracle": _text_oracle,
    "oracle_latents": _oracle_latents,
    "pre_latents": _pre_latents,
}
