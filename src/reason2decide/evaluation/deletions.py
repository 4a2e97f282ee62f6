"""Texts for the deletion test: without the sentences that a rationale cites, and without as many words of others.

If a decision rests on what its rationale cites, deleting that changes its probability more than deleting something else
of equal length. Of synthetic calls the cited sentences are known exactly: those that name a finding or risk which the
rationale names. Of other texts a sentence is cited if the rationale has at least half of its content words, compared by
stems. All rules are ours, after the erasure tests of DeYoung et al. 2020 ("comprehensiveness").
"""

from __future__ import annotations

from collections.abc import Sequence

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.data.sampling import draw
from reason2decide.data.words import STOP_WORDS, Span, sentences, stem, units
from reason2decide.evaluation.citations import citations, has_facts, named_in

NEEDED = 0.5  # ours: share of a sentence's content words that the rationale must have to cite it
CLOSE = 0.5  # ours: the other sentences' words may differ from the cited ones' by this share
SIGNATURE = f"needed:{NEEDED}|close:{CLOSE}"


def deletion_of(record: Record, prediction: Prediction, seed: int = 0) -> tuple[str, str] | None:
    """The text without the cited sentences, and without other sentences of about as many words.

    A hash of (seed, record id) orders the other sentences. None if nothing is cited, or too little is not.
    """
    cited = set(cited_sentences(record, prediction.rationale or ""))
    every = sentences(record.text)
    others = sorted((span for span in every if span not in cited), key=lambda s: draw(seed, f"delete {s}", record.id))
    wanted, chosen, words = _words(record, cited), set[Span](), 0
    for span in others:
        size = _words(record, [span])
        if abs(words + size - wanted) < abs(words - wanted):
            chosen.add(span)
            words += size
    if not cited or abs(words - wanted) > CLOSE * wanted:
        return None
    return _without(record.text, every, cited), _without(record.text, every, chosen)


def cited_sentences(record: Record, rationale: str) -> list[Span]:
    """The sentences of the text that the rationale cites, as (start, end)."""
    if has_facts(record):
        said = citations(rationale)
        return [
            span
            for span in sentences(record.text)
            if named_in(record.text[slice(*span)]) & (said.present | said.denied)
        ]
    known = {stem(word) for word in units(rationale)}
    found = []
    for start, end in sentences(record.text):
        content = {stem(word) for word in units(record.text[start:end]) if word not in STOP_WORDS}
        if content and len(content & known) >= NEEDED * len(content):
            found.append((start, end))
    return found


def _words(record: Record, spans: Sequence[Span] | set[Span]) -> int:
    return sum(len(record.text[start:end].split()) for start, end in spans)


def _without(text: str, every: Sequence[Span], gone: set[Span]) -> str:
    return " ".join(text[start:end] for start, end in every if (start, end) not in gone)
