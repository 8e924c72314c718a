"""Contamination: rows that contain a benchmark's question, by the n-grams of words that they share.

As in Tulu 3 (arXiv 2411.15124, section 3.2): a question counts as contained where at least `min_overlap` of its words are covered by
n-grams that the row has too. A question shorter than n words is one n-gram of all its words, if it has at least five; else it is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trlm_core.text.words import gram_hashes, word_hashes, words

FEWEST_WORDS = 5  # of a question that can be told from small talk
BUCKET_BITS = 24  # a byte each: 1.5 million n-grams fill a tenth


@dataclass(frozen=True)
class Match:
    benchmark: str
    question: int  # number within its benchmark
    overlap: float


@dataclass(frozen=True)
class BenchmarkGrams:
    """Questions as hashed n-grams. `grams` are sorted; gram i belongs to question `owners[i]` and begins at its word `places[i]`.

    `buckets` tells by a hash's first bits whether `grams` may have it: of a row's n-grams, few are left to search for.
    """

    min_overlap: float
    lengths: tuple[int, ...]  # n, and the lengths of shorter questions
    grams: np.ndarray
    buckets: np.ndarray
    owners: np.ndarray
    places: np.ndarray
    sizes: np.ndarray  # words of each question
    spans: np.ndarray  # words of each question's n-grams
    names: tuple[tuple[str, int], ...]  # of each question: benchmark, number

    @classmethod
    def of(cls, texts: Mapping[str, Sequence[str]], ngram: int, min_overlap: float) -> "BenchmarkGrams":
        """texts: benchmark -> its questions."""
        every_one = ((name, number, words(text)) for name, questions in texts.items() for number, text in enumerate(questions))
        kept = [each for each in every_one if len(each[2]) >= FEWEST_WORDS]
        spans = np.array([min(ngram, len(told)) for *_, told in kept], np.int64)
        grams = [gram_hashes(word_hashes(told), int(span)) for (*_, told), span in zip(kept, spans, strict=True)]
        owners = np.repeat(np.arange(len(kept)), [len(each) for each in grams])
        places = np.concatenate([np.arange(len(each)) for each in grams] or [np.empty(0, np.int64)])
        every = np.concatenate(grams or [np.empty(0, np.uint64)])
        order = np.argsort(every, kind="stable")
        sizes = np.array([len(told) for *_, told in kept], np.int64)
        lengths = tuple(sorted({int(span) for span in spans}))
        names = tuple(each[:2] for each in kept)
        return cls(min_overlap, lengths, every[order], _buckets(every), owners[order], places[order], sizes, spans, names)

    def match(self, text: str) -> Match | None:
        """The question that the text covers most, where it covers enough of it."""
        hashes = word_hashes(words(text))
        hits = np.concatenate([self._shared(gram_hashes(hashes, length)) for length in self.lengths] or [np.empty(0, np.int64)])
        matches = [self._covered(int(question), hits) for question in np.unique(self.owners[hits])]
        best = max(matches, key=lambda match: match.overlap, default=None)
        return best if best is not None and best.overlap >= self.min_overlap else None

    def _shared(self, hashes: np.ndarray) -> np.ndarray:
        """Numbers of the questions' n-grams that are among these."""
        hashes = hashes[self.buckets[hashes >> np.uint64(64 - BUCKET_BITS)]]
        if not hashes.size:
            return np.empty(0, np.int64)
        found = np.unique(hashes[self.grams[np.minimum(np.searchsorted(self.grams, hashes), len(self.grams) - 1)] == hashes])
        first, last = np.searchsorted(self.grams, found), np.searchsorted(self.grams, found, side="right")
        return np.concatenate([np.arange(*edges) for edges in zip(first, last, strict=True)] or [np.empty(0, np.int64)])

    def _covered(self, question: int, hits: np.ndarray) -> Match:
        covered = np.zeros(self.sizes[question], bool)
        for place in self.places[hits[self.owners[hits] == question]]:
            covered[place : place + self.spans[question]] = True
        return Match(*self.names[question], float(covered.mean()))


def _buckets(grams: np.ndarray) -> np.ndarray:
    filled = np.zeros(1 << BUCKET_BITS, bool)
    filled[grams >> np.uint64(64 - BUCKET_BITS)] = True
    return filled
