"""Check lexically, without a model, whether the text supports what a rationale says, and find the cited words.

The rules are all ours. A sentence ends at ".", "!", "?" or ";" before white space or the end, or at a line break. Its
content words are its stemmed words without stop words, or pairs of characters where a script has no spaces; it is
supported if at least half of them occur in the stemmed text.
"""

from __future__ import annotations

from reason2decide.data.words import STOP_WORDS, Span, sentences, stem, unit_spans, units
from reason2decide.errors import NothingToCount
from reason2decide.evaluation.metrics.base import Examples, SufficientStatistics
from reason2decide.evaluation.metrics.rationales import Ratio, has_rationale, pooled, require_rationales, told

NEEDED = 0.5  # ours: share of a sentence's content words that must occur in the text


def sentence_support(text: str, rationale: str) -> list[tuple[int, int, bool]]:
    """(start, end, supported by the text) of each sentence of the rationale that has a content word."""
    known = set(_stems(text))
    found = []
    for start, end in sentences(rationale):
        content = set(_stems(rationale[start:end]))
        if content:
            found.append((start, end, len(content & known) >= NEEDED * len(content)))
    return found


def cited_spans(text: str, rationale: str) -> list[Span]:
    """(start, end) of each part of the text that the rationale cites, in order, to mark it for the reader.

    Cited are the content words of the text that the rationale has too, compared by stems; words separated only by white
    space form one span.
    """
    cited = set(_stems(rationale))
    spans: list[Span] = []
    for start, end in unit_spans(text):
        word = text[start:end]
        if word.casefold() in STOP_WORDS or stem(word) not in cited:
            continue
        if spans and not text[spans[-1][1] : start].strip():
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def _stems(text: str) -> list[str]:
    return [stem(unit) for unit in units(text) if unit not in STOP_WORDS]


class Support(Ratio):
    """Share of the rationales' sentences that the text supports.

    Why: a sentence with words that the text lacks is invented or general knowledge: in either case a reader cannot
    check it. Only words are compared, so a denied finding cited as present counts as supported.
    Formula: supported sentences / sentences with a content word, over all rationales together; rules in
    `metrics/support.py`. Range 0 to 1, higher is better, but compare with that of the gold rationales: they
    also say what is in no note, such as the urgency. Source: ours, after attribution to a source in Rashkin et al.
    2023.
    """

    name, title, worst, best = "support", "Sentences supported by the text", 0.0, 1.0

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (supported sentences, sentences); rationales without a sentence are left out.

        Raises:
            NotComputed: no prediction has a rationale, or no rationale has a sentence.
        """
        require_rationales(examples)
        rows, positions = [], []
        for i, (record, prediction) in enumerate(zip(examples.records, examples.predictions, strict=True)):
            judged = sentence_support(record.text, prediction.rationale or "")
            if judged:
                rows.append((sum(supported for _, _, supported in judged), len(judged)))
                positions.append(i)
        if not rows:
            raise NothingToCount("no predicted rationale has a sentence with a content word")
        missing = sum(not has_rationale(prediction) for prediction in examples.predictions)
        wordless = len(examples) - len(rows) - missing
        notes = {
            f"{missing} of {len(examples)} predictions have no rationale and are left out": missing,
            f"{wordless} of {len(examples)} rationales have no content word and are left out": wordless,
        }
        return pooled(rows, positions, told(notes))

    def signature(self) -> str:
        """The required share of content words, the stemming, and how scripts without spaces are cut."""
        return f"needed:{NEEDED}|stem:suffix|unspaced:pairs"
