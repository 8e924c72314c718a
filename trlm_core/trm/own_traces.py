"""A checkpoint's own replies to generated problems as thoughts, kept where the scorer verifies them.

<|im_start|>user\\nWhat is 4 + 3?<|im_end|>\\n<|im_start|>assistant\\n<think> | \\n4 + 3 = 7.\\n | </think> | \\n7<|im_end|>

Of the held-out splits every question stays: where the checkpoint's own trace is dropped, ours takes its place, so that an accuracy is one
over all questions and not over those that the checkpoint can do.
"""

import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trlm_core.artifacts.aside import write_aside
from trlm_core.artifacts.fingerprint import Fingerprinted, canonical_json
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.provenance import installed_version
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.generated.draw import draw_problems
from trlm_core.data.generated.problem import Problem
from trlm_core.data.split import is_held_out, seed_of
from trlm_core.inference.generate import Generated, generate_replies
from trlm_core.recipes.trm_schema import OwnTraces, TRMRecipe
from trlm_core.text.scorers import is_right
from trlm_core.text.thoughts import CLOSE, OPEN, parse_reply, with_thought
from trlm_core.text.tokenizer import load_tokenizer, prompt_ids
from trlm_core.training.checkpoint import append_line, load_model, read_lines
from trlm_core.trm.states import base_precision
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import (
    SPLITS,
    TOKENIZER,
    Split,
    ThoughtDataError,
    ThoughtExample,
    ThoughtRow,
    check_examples,
    write_thoughts,
)

logger = logging.getLogger(__name__)

REPLIES = "replies.jsonl"  # in the workspace, in the order of the questions: what an interrupted generation goes on from
QUESTIONS_AT_ONCE = 128
ONE_ANSWER, ENOUGH = 0.9, 10  # a share of a family's verified replies, above which its thoughts are not needed for its answers; of how many
Verdict = Literal["verified", "not_ended", "not_well_formed", "wrong", "worded_otherwise"]
OnReply = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class Asked:
    split: Split
    number: int  # among the family's questions of this split
    problem: Problem


def own_traces_spec(recipe: TRMRecipe, data: OwnTraces, base: Fingerprinted) -> Spec:
    # What is not said of the prompt is left out: replies are dear, and these are the same.
    unsaid = {name for name in ("system_prompt", "today") if getattr(data, name) is None}
    identity = {"made_by": "own_traces/1", "data": data.model_dump(mode="json", exclude=unsaid), "precision": recipe.precision}
    return Spec("datasets", recipe.name, "thoughts", identity, {"base": base.fingerprint}, recipe.model_dump(mode="json"))


def make_own_traces(
    store: Store, recipe: TRMRecipe, data: OwnTraces, base: Manifest, device: str, on_reply: OnReply = lambda done, total: None
) -> Manifest:
    """Raises ThoughtDataError where a family has too few questions, a prompt is none, or no reply to a question of train is verified."""
    spec = own_traces_spec(recipe, data, base)

    def build(folder: Path) -> dict[str, Any]:
        questions = asked_questions(data)
        tokenizer = asking_tokenizer(load_tokenizer(store.folder(base)), data)
        tokens = ThinkTokens.of(tokenizer)
        model = load_model(store.folder(base), base_precision(recipe)).to(device)  # type: ignore[arg-type]
        check_prompts(tokenizer, questions, data.max_new_tokens, model.config.max_position_embeddings)
        replies = reply_to(model, tokenizer, questions, data.max_new_tokens, store.workspace(spec) / REPLIES, on_reply)
        examples = [*thought_examples(tokenizer, questions, replies)]
        check_examples(examples, tokens, model.config.max_position_embeddings, recipe.model.latents_beside_the_prompt)
        tokenizer.save_pretrained(folder / TOKENIZER)
        return write_thoughts(examples, folder) | verdict_counts(questions, replies) | {"families": families_kept(questions, replies)}

    return store.make(spec, build)


def asking_tokenizer(base: PreTrainedTokenizerBase, data: OwnTraces) -> PreTrainedTokenizerBase:
    """The base's, the recipe's system turn and date written into its template: whoever asks with it later asks the same. Changes `base`.

    A conversation with a system turn of its own keeps it.
    """
    written = ""
    if data.system_prompt is not None:
        turn = f"{{'role': 'system', 'content': {json.dumps(data.system_prompt, ensure_ascii=False)}}}"
        written += f"{{% if messages[0].role != 'system' %}}{{% set messages = [{turn}] + messages %}}{{% endif %}}"
    if data.today is not None:
        written += _clock(data.today)
    if written:
        base.chat_template = written + base.get_chat_template()
    return base


def check_prompts(tokenizer: PreTrainedTokenizerBase, questions: Sequence[Asked], max_new_tokens: int, context: int) -> None:
    """Before the first reply, since all of them cost hours. Raises ThoughtDataError for the first prompt of which no row can come."""
    if _on(tokenizer, questions[0], "one day") != _on(tokenizer, questions[0], "another"):
        raise ThoughtDataError("prompts: wanted the same ones every day, got the day's date from the base's template; set data.today")
    tags = {ThinkTokens.of(tokenizer).think: OPEN, ThinkTokens.of(tokenizer).end_think: CLOSE}
    for asked in questions:
        ids = prompt_ids(tokenizer, _messages(asked))
        if written := [tags[each] for each in ids if each in tags]:
            advice = "set data.system_prompt to one without them, if they are the template's"
            raise ThoughtDataError(f"{_name(asked)}: wanted a prompt without a tag of a thought, got {' '.join(written)}; {advice}")
        if (longest := len(ids) + max_new_tokens) > context:
            got = f"got {len(ids):,} and {max_new_tokens:,} of a reply"
            raise ThoughtDataError(
                f"{_name(asked)}: wanted at most the base's {context:,} positions, {got}; lower max_new_tokens by {longest - context:,}"
            )


def _on(tokenizer: PreTrainedTokenizerBase, asked: Asked, day: str) -> str:
    """The prompt, if the clock showed this."""
    template = _clock(day) + tokenizer.get_chat_template()
    return str(tokenizer.apply_chat_template(_messages(asked), chat_template=template, tokenize=False, add_generation_prompt=True))


def _clock(day: str) -> str:
    """transformers gives templates a function of this name, which tells the date; a template's own macro goes before it."""
    return f"{{% macro strftime_now(form) %}}{day}{{% endmacro %}}"


def asked_questions(data: OwnTraces) -> list[Asked]:
    """Of every family for every split, each question once; those of validation and test no stage has trained on."""
    if (got := installed_version("reasoning-gym")) != data.generator:
        raise ThoughtDataError(f"data.generator: wanted reasoning-gym {data.generator}, got {got}; install it, or set what is installed")
    seen: set[str] = set()
    return [each for family in data.families for each in _asked_of_family(data, family, seen)]


def reply_to(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Asked],
    max_new_tokens: int,
    kept: Path,
    on_reply: OnReply,
) -> list[Generated]:
    """In the order of the questions; those that the file `kept` has are not generated again."""
    replies = _whole_chunks([Generated(**line) for line in read_lines(kept)], len(questions))
    write_aside(kept, "".join(canonical_json(asdict(reply)) + "\n" for reply in replies))  # a kill may have left half a line
    for first in range(len(replies), len(questions), QUESTIONS_AT_ONCE):
        some = questions[first : first + QUESTIONS_AT_ONCE]
        prompts = [prompt_ids(tokenizer, _messages(each)) for each in some]
        for reply in generate_replies(model, tokenizer, prompts, max_new_tokens=max_new_tokens):
            replies.append(reply)
            append_line(kept, asdict(reply))
        on_reply(len(replies), len(questions))
    return replies


def _whole_chunks(replies: list[Generated], wanted: int) -> list[Generated]:
    """A reply depends on its batch, by a rounding: a chunk that was cut off is generated as the same batches again."""
    return replies if len(replies) == wanted else replies[: len(replies) // QUESTIONS_AT_ONCE * QUESTIONS_AT_ONCE]


def verdict(problem: Problem, reply: Generated) -> Verdict:
    """An answer in other words than the family's would be right, and never equal to what is generated after a thought."""
    parsed = parse_reply(reply.text)
    if not reply.ended:
        return "not_ended"
    if parsed is None or not reply.text.startswith(OPEN):
        return "not_well_formed"
    if not is_right(reply.text, problem.answer, problem.answer_kind):
        return "wrong"
    return "verified" if parsed.answer == problem.answer else "worded_otherwise"


def thought_examples(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Asked], replies: Sequence[Generated]
) -> Iterator[ThoughtExample]:
    for asked, reply in zip(questions, replies, strict=True):
        if verdict(asked.problem, reply) == "verified":
            yield _example(tokenizer, asked, reply.text, "own")
        elif asked.split != "train":
            derived = with_thought(" ".join(asked.problem.steps), asked.problem.answer)
            yield _example(tokenizer, asked, derived, "derived")


def verdict_counts(questions: Sequence[Asked], replies: Sequence[Generated]) -> dict[str, Any]:
    """Replies by split and verdict. Raises ThoughtDataError where none of train is verified."""
    counts = {split: Counter[str]() for split in SPLITS}
    for asked, reply in zip(questions, replies, strict=True):
        counts[asked.split][verdict(asked.problem, reply)] += 1
    if not counts["train"]["verified"]:
        got = ", ".join(f"{count} {name}" for name, count in sorted(counts["train"].items()))
        raise ThoughtDataError(f"own traces: wanted replies of train that are verified, got {got}; take a checkpoint that thinks in text")
    return {"replies": {split: dict(sorted(each.items())) for split, each in counts.items()}}


def families_kept(questions: Sequence[Asked], replies: Sequence[Generated]) -> dict[str, dict[str, float]]:
    """Of train, by family: verified replies, and the share of them that give the commonest answer. Warns where that is nearly all of them.

    A checkpoint that always says 1 is right wherever 1 is, and only these replies are kept: then no thought is needed to answer as they do.
    """
    answers: dict[str, Counter[str]] = {}
    for asked, reply in zip(questions, replies, strict=True):
        if asked.split == "train" and verdict(asked.problem, reply) == "verified":
            answers.setdefault(asked.problem.family, Counter())[asked.problem.answer] += 1
    for family, counted in answers.items():
        (answer, times), kept = counted.most_common(1)[0], counted.total()
        if times > ONE_ANSWER * kept and kept >= ENOUGH:
            advice = "leave the family out, or hold what comes of it against the row mean_latent"
            logger.warning(
                "%s: wanted thoughts that differ, got the answer %s in %d of %d verified replies; %s", family, answer, times, kept, advice
            )
    return {family: {"verified": each.total(), "commonest_answer": max(each.values()) / each.total()} for family, each in answers.items()}


def _asked_of_family(data: OwnTraces, family: str, seen: set[str]) -> Iterator[Asked]:
    counts = data.families[family].questions
    train = _drawn(data, family, counts.train, seen, held_out=False)
    held_out = _drawn(data, family, counts.validation + counts.test, seen, held_out=True)
    parts: dict[Split, list[Problem]] = {
        "train": train,
        "validation": held_out[: counts.validation],
        "test": held_out[counts.validation :],
    }
    for split, problems in parts.items():
        yield from (Asked(split, number, problem) for number, problem in enumerate(problems))


def _drawn(data: OwnTraces, family: str, count: int, seen: set[str], *, held_out: bool) -> list[Problem]:
    def accept(problem: Problem) -> bool:
        return is_held_out(problem.question) == held_out and problem.question not in seen

    seed = seed_of(data.seed, f"own_traces/{family}/{'held_out' if held_out else 'train'}")
    drawn = [*itertools.islice(draw_problems(family, data.families[family].sizes, seed, accept=accept), count)]
    if len(drawn) < count:
        side = "validation and test" if held_out else "train"
        raise ThoughtDataError(
            f"{family}: wanted {count:,} questions for {side}, its sizes give {len(drawn):,}; lower the counts or widen them"
        )
    seen.update(problem.question for problem in drawn)
    return drawn


def _example(tokenizer: PreTrainedTokenizerBase, asked: Asked, reply: str, author: Literal["own", "derived"]) -> ThoughtExample:
    tokens = ThinkTokens.of(tokenizer)
    ids = tokenizer.encode(reply, add_special_tokens=False)
    end = ids.index(tokens.end_think)
    prompt = (*prompt_ids(tokenizer, _messages(asked)), tokens.think)
    thought, answer = reply.removeprefix(OPEN).split(CLOSE)
    provenance = f"{author}/{_name(asked)}"
    row = ThoughtRow(prompt, tuple(ids[1:end]), (*ids[end + 1 :], tokens.eos))
    return ThoughtExample(asked.split, provenance, str(tokenizer.decode([*prompt])), thought, f"{answer}{tokenizer.eos_token}", row)


def _name(asked: Asked) -> str:
    return f"{asked.problem.family}/{asked.split}/{asked.number}"


def _messages(asked: Asked) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked.problem.question}]
