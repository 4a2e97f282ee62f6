"""Find what a rationale cites as present although its note denies it, or says it of somebody else or of the past."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from reason2decide.data.words import STOP_WORDS, WORD, Span, sentences, stem
from reason2decide.errors import NothingToCount
from reason2decide.evaluation.assertions import assertion_at
from reason2decide.evaluation.metrics.base import Examples, SufficientStatistics
from reason2decide.evaluation.metrics.rationales import Ratio, has_rationale, pooled, require_rationales, told

LONGEST = 4  # ours: content words of a phrase
# Ours: stems of words that are no findings; what they stand beside may be denied without denying them.
_NO_FINDINGS = """
    about after again ago before bedtime caller calls date day evening first gone home hour hours last later month
    months morning next night now old once past patient pt since time times today tomorrow week weeks year years
    yesterday
"""
NO_FINDINGS = frozenset(map(stem, _NO_FINDINGS.split()))


def contradictions(text: str, rationale: str) -> list[Span]:
    """(start, end) of each phrase of the rationale that it asserts as present and the text nowhere does.

    A phrase is a run of content words, compared by stems, that the text has too; of overlapping ones, the longest.
    """
    return [span for span, contradicts in _cited(text, rationale) if contradicts]


def _cited(text: str, rationale: str) -> list[tuple[Span, bool]]:
    """The phrases that a rationale asserts as present and the text has, and whether the text nowhere asserts them."""
    mentions: dict[tuple[str, ...], list[tuple[str, int, int]]] = defaultdict(list)
    for stems, sentence, _, start, end in phrases(text):
        mentions[stems].append((sentence, start, end))
    found: list[tuple[Span, bool]] = []
    for stems, sentence, offset, start, end in sorted(phrases(rationale), key=lambda phrase: -len(phrase[0])):
        span = (offset + start, offset + end)
        if stems not in mentions or any(span[0] < other[1] and other[0] < span[1] for other, _ in found):
            continue
        if assertion_at(sentence, start, end) == "present":
            asserted = any(assertion_at(*mention) == "present" for mention in mentions[stems])
            found.append((span, not asserted))
    return sorted(found)


def phrases(text: str) -> Iterator[tuple[tuple[str, ...], str, int, int, int]]:
    """The runs of content words of each sentence: stems, the sentence, its place, and start and end within it."""
    for offset, stop in sentences(text):
        sentence = text[offset:stop]
        words = [word.span() for word in WORD.finditer(sentence) if _may_be_finding(word.group())]
        stems = [stem(sentence[start:end]) for start, end in words]
        for first in range(len(words)):
            for last in range(first, min(first + LONGEST, len(words))):
                if last > first and not sentence[words[last - 1][1] : words[last][0]].isspace():
                    break
                yield tuple(stems[first : last + 1]), sentence, offset, words[first][0], words[last][1]


def _may_be_finding(word: str) -> bool:
    return not word.isdigit() and word.casefold() not in STOP_WORDS and stem(word) not in NO_FINDINGS


class CitedContradicted(Ratio):
    """Share of rationales that cite as present what their note denies, or says of somebody else or of the past.

    Why: the commonest way in which a rationale misleads, on notes whose true facts nobody has listed. It sees only
    phrases that rationale and note share, and its reader of denials errs in English notes as docs/measures.md says; for
    synthetic calls `cited_false` is exact.
    Formula: rationales with such a phrase / rationales that assert a phrase of their note, by
    `evaluation/assertions.py`. Range 0 to 1, lower is better. Source: ours, with ConText's idea (Harkema et al. 2009).
    """

    name, title, worst, best = "cited_contradicted", "Rationales that contradict the note", 1.0, 0.0

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (contradicts, 1); rationales that assert nothing of their note are left out.

        Raises:
            NotComputed: no prediction has a rationale, or none asserts anything of its note.
        """
        require_rationales(examples)
        rows, positions = [], []
        for i, (record, prediction) in enumerate(zip(examples.records, examples.predictions, strict=True)):
            cited = _cited(record.text, prediction.rationale or "")
            if cited:
                rows.append((any(contradicts for _, contradicts in cited), 1))
                positions.append(i)
        if not rows:
            raise NothingToCount("no rationale asserts a phrase of its note")
        missing = sum(not has_rationale(prediction) for prediction in examples.predictions)
        wordless = len(examples) - len(rows) - missing
        notes = {
            f"{missing} of {len(examples)} predictions have no rationale and are left out": missing,
            f"{wordless} of {len(examples)} rationales assert no phrase of their note and are left out": wordless,
        }
        return pooled(rows, positions, told(notes))
