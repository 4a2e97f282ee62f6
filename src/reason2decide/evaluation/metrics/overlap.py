"""Overlap of a rationale's wording with the gold one: BLEU and chrF, by sacrebleu.

sacrebleu tokenises and counts; only the last step, from summed counts to the score, is reimplemented here, because
sacrebleu's takes one corpus at a time and the bootstrap needs thousands. A test asserts that both agree to 1e-9.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import sacrebleu

from reason2decide.data.words import UNSPACED, WORD
from reason2decide.evaluation.metrics.base import Examples, Floats, Metric, SufficientStatistics
from reason2decide.evaluation.metrics.pairs import rationale_pairs

CHUNK = 512  # ours: records counted at once; sacrebleu keeps all n-grams of a chunk in memory


class _Overlap(Metric):
    """Counts from a sacrebleu metric, over the records that have a gold rationale of the source."""

    @abstractmethod
    def make_scorer(self) -> Any:
        """A sacrebleu metric with the settings given in the signature."""

    @cached_property
    def scorer(self) -> Any:
        """The sacrebleu metric, for one reference per record."""
        scorer = self.make_scorer()
        scorer.num_refs = 1  # sacrebleu infers it from data; set here, so that the signature is known earlier
        return scorer

    def prepare(self, gold: Sequence[str]) -> None:
        """Settle what depends on the language of the gold rationales; nothing by default."""

    def signature(self) -> str:
        """sacrebleu's own signature, which includes its version."""
        return str(self.scorer.get_signature())

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows of sacrebleu's segment counts; a missing predicted rationale counts as an empty one.

        Raises:
            NotComputed: no source was named, no record has a gold rationale of it, or no prediction has a rationale.
        """
        pairs = rationale_pairs(examples)
        self.prepare(pairs.gold)
        rows: list[list[int]] = []
        for start in range(0, len(pairs.gold), CHUNK):
            chunk = slice(start, start + CHUNK)
            # The call behind corpus_score and sacrebleu's own significance tests; no public call returns the counts.
            rows += self.scorer._extract_corpus_statistics(pairs.predicted[chunk], [pairs.gold[chunk]])
        return SufficientStatistics(np.array(rows, float), np.arange(len(rows)), pairs.positions, pairs.notes)


class Bleu(_Overlap):
    """Corpus BLEU: n-gram precision of the rationale against the gold one, with a brevity penalty.

    Why: the paper reports it, so results can be compared with the paper's; it rewards wording, not truth.
    Formula: BP · exp(mean over n = 1..4 of log p_n), p_n the clipped n-gram precision in per cent (the
    k-th zero count becomes 1 / 2^k), BP = exp(1 - r/c) if the output length c is below the reference length r,
    else 1. Range 0 to 100, higher is better. Source: Papineni et al. 2002; settings of sacrebleu (Post 2018): 13a
    tokens, or characters if most of the gold rationales' letters are of scripts without spaces (`tok` in the
    signature), exponential smoothing, mixed case.
    """

    name, title, worst, best = "bleu", "BLEU", 0.0, 100.0

    def __init__(self, tokenize: str | None = None) -> None:
        self.tokenize, self._settled = tokenize or "13a", tokenize is not None

    def settled(self) -> Bleu:
        """BLEU that cuts all texts as these."""
        return Bleu(self.tokenize)

    def prepare(self, gold: Sequence[str]) -> None:
        """Choose how texts are cut, unless that is settled."""
        if self._settled:
            return
        joined = sum(len(run) for text in gold for run in UNSPACED.findall(text))
        letters = sum(len(word) for text in gold for word in WORD.findall(text))
        tokenize = "char" if 2 * joined > letters else "13a"
        if tokenize != self.tokenize:
            self.tokenize = tokenize
            self.__dict__.pop("scorer", None)  # made again when asked for

    def make_scorer(self) -> Any:
        """BLEU with defaults; `force` only silences a warning about texts that look tokenised."""
        return sacrebleu.BLEU(force=True, tokenize=self.tokenize)

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 10) -> (...); the columns are output length, reference length, 4 matches and 4 totals."""
        written, reference = sums[..., 0], sums[..., 1]
        matches, totals = sums[..., 2:6], sums[..., 6:10]
        zero = matches == 0
        smoothed = np.where(zero, 0.5 ** np.cumsum(zero, axis=-1), matches)
        precision = 100 * smoothed / np.maximum(totals, 1)
        penalty = np.exp(np.minimum(0.0, 1 - reference / np.maximum(written, 1)))
        score = penalty * np.exp(np.log(precision).mean(axis=-1))
        # Without any match, or with outputs too short for a 4-gram, sacrebleu defines the score as 0.
        result: Floats = np.where(zero.all(axis=-1) | (totals == 0).any(axis=-1), 0.0, score)
        return result


class Chrf(_Overlap):
    """Corpus chrF: character n-gram F-score of the rationale against the gold one.

    Why: it tolerates inflection, typos and abbreviations, common in nurses' notes, where BLEU sees a miss.
    Formula: F_2 = 5 P R / (4 P + R), P and R the means over n = 1..6 of character n-gram precision and recall (orders
    that occur on both sides), times 100. Range 0 to 100, higher is better. Source: Popović 2015; settings of sacrebleu.
    """

    name, title, worst, best = "chrf", "chrF", 0.0, 100.0

    def make_scorer(self) -> Any:
        """chrF2 with sacrebleu's defaults."""
        return sacrebleu.CHRF()

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 18) -> (...); the columns are (output, reference, match) counts for each of 6 orders."""
        written, reference, match = (sums[..., i::3] for i in range(3))
        both = (written > 0) & (reference > 0)
        orders = np.maximum(both.sum(axis=-1), 1)
        precision = (np.where(both, match, 0) / np.maximum(written, 1)).sum(axis=-1) / orders
        recall = (np.where(both, match, 0) / np.maximum(reference, 1)).sum(axis=-1) / orders
        weighted = 4 * precision + recall
        result: Floats = 100 * 5 * precision * recall / np.where(weighted > 0, weighted, 1.0)
        return result
