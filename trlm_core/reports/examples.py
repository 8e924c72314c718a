"""Example replies: the first question of every family, answered by base and stages, side by side; nothing is picked by hand."""

from dataclasses import dataclass

from trlm_core.artifacts.store import Store
from trlm_core.evals.harness import read_replies
from trlm_core.evals.reasoning import ScoredReply
from trlm_core.reports.compare import STAGE1, STAGE2, STAGE3, subject_label
from trlm_core.reports.results import BASE, RunResults

SHOWN = (BASE, STAGE1, STAGE2, STAGE3)


@dataclass(frozen=True)
class Example:
    family: str
    trained_on: bool
    question: str
    answer: str
    replies: tuple[tuple[str, ScoredReply], ...]  # label of the subject, its reply


def examples(store: Store, results: RunResults) -> list[Example]:
    """One a family, in the order that the questions were asked in."""
    replies = {subject: read_replies(store.folder(results.replies[subject])) for subject in SHOWN if subject in results.replies}
    if not replies:
        return []
    asked = next(iter(replies.values()))
    firsts = {reply.family: position for position, reply in reversed(list(enumerate(asked)))}
    return [_example(replies, asked, position) for position in sorted(firsts.values())]


def _example(replies: dict[str, list[ScoredReply]], asked: list[ScoredReply], position: int) -> Example:
    first = asked[position]
    side_by_side = tuple((subject_label(subject), each[position]) for subject, each in replies.items())
    return Example(first.family, first.trained_on, first.question, first.answer, side_by_side)
