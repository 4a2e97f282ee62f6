"""ROUGE-L: the longest common subsequence of words, by bit-parallel counting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from reason2decide.data.words import words_of
from reason2decide.evaluation.metrics.base import Examples, SufficientStatistics
from reason2decide.evaluation.metrics.pairs import rationale_pairs
from reason2decide.evaluation.metrics.rationales import Ratio, pooled


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    Each word of `other` costs one addition of numbers with len(one) bits. Source: Hyyrö 2004, "Bit-parallel LCS-length
    computation revisited".
    """
    places: defaultdict[str, int] = defaultdict(int)
    for i, word in enumerate(one):
        places[word] |= 1 << i
    every = (1 << len(one)) - 1
    unmatched = every  # a bit becomes 0 where the subsequence grows
    for word in other:
        matches = unmatched & places.get(word, 0)
        unmatched = ((unmatched + matches) | (unmatched - matches)) & every
    return len(one) - unmatched.bit_count()


class RougeL(Ratio):
    """Mean F1 of the longest common subsequence of words with the gold rationale.

    Why: it requires the same words in the same order but allows others in between, so it penalises rewording less than
    BLEU; many papers report it.
    Formula: mean of 100 · 2 L / (a + b), L the length of the longest common subsequence, a and b the numbers of words
    of the two rationales (runs of letters and digits, or characters of scripts without spaces, in lower case, not
    stemmed); an empty one counts 0. Range 0 to 100, higher is better. Source: Lin 2004, with beta = 1 as in the package
    rouge-score.
    """

    name, title, worst, best = "rouge_l", "ROUGE-L", 0.0, 100.0

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (100 F1, 1).

        Raises:
            NotComputed: as `rationale_pairs`.
        """
        pairs = rationale_pairs(examples)
        rows = []
        for pair in zip(pairs.gold, pairs.predicted, strict=True):
            one, other = map(words_of, pair)
            both = len(one) + len(other)
            rows.append((100 * 2 * common_subsequence(one, other) / both if both else 0.0, 1.0))
        return pooled(rows, pairs.positions, pairs.notes)

    def signature(self) -> str:
        """How texts are tokenised and compared."""
        return "tok:words|unspaced:characters|case:lower|stem:no|beta:1"
