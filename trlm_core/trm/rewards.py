"""What an answer is worth in phase 3, told from its tokens: right, well-formed, and where a recipe wants it, right in part.

P prompts, G answers each.
"""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trlm_core.recipes.trm_schema import Rewards
from trlm_core.trm.answers import Ids
from trlm_core.trm.thought_data import ThoughtRow

IsWellFormed = Callable[[Ids, ThoughtRow], bool]  # an answer without its EOS
NUMBER = re.compile(r"\s*[-+]?\d[\d,]*(\.\d+)?\s*")


def reward_of(rewards: Rewards, answer: Ids, row: ThoughtRow, is_well_formed: IsWellFormed) -> float:
    """exact: all tokens of the answer, EOS with it. well_formed: an answer's form, and EOS. partial: times the share that is in place."""
    reward = rewards.exact * (answer == row.answer)
    if answer and answer[-1] == row.answer[-1]:
        reward += rewards.well_formed * is_well_formed(answer[:-1], row)
    in_place = sum(one == other for one, other in zip(answer, row.answer, strict=False))
    return reward + rewards.partial * in_place / len(row.answer)


def group_rewards(rewards: Rewards, answers: Sequence[Ids], rows: Sequence[ThoughtRow], is_well_formed: IsWellFormed) -> Tensor:
    """[P, G] of P x G answers, a prompt's one after the other."""
    group_size = len(answers) // len(rows)
    values = [reward_of(rewards, answer, rows[number // group_size], is_well_formed) for number, answer in enumerate(answers)]
    return torch.tensor(values).view(len(rows), group_size)


def is_as_long(answer: Ids, row: ThoughtRow) -> bool:
    """Of grids: as many cells as the row's answer."""
    return len(answer) == len(row.answer) - 1


def is_number(tokenizer: PreTrainedTokenizerBase) -> IsWellFormed:
    """Of numeric answers: nothing but a number."""
    return lambda answer, row: NUMBER.fullmatch(str(tokenizer.decode(list(answer)))) is not None
