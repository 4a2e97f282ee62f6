"""Find the sentences of rationales that state the decision instead of a reason, and take them out.

A rationale that ends in "an ambulance must come at once" gives its label away whatever facts it cites. What remains
when such sentences are gone must carry the decision by itself. All rules are ours.

A *verdict marker* is a run of one to three words, the first and last of content, that stands in at least `COMMON` of
the training rationales of one label, under that label in at least `CERTAIN` of its occurrences, and seldom has a word
of the note: a finding that decides is a reason, a phrase that only says what was decided is not. A sentence with a
marker is a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from reason2decide.data.records import LabelSet, Record
from reason2decide.data.sampling import some_explained
from reason2decide.data.words import MASK, STOP_WORDS, WORD, mask_label_words, sentences, stem, words_of
from reason2decide.errors import NotComputed, require

MOST_RECORDS = 5_000  # ours: markers are common, so more records find no others
LONGEST = 3  # words
COMMON = 0.05  # ours
CERTAIN = 0.95  # ours: where labels are noisy, findings fall below it and verdicts, which follow the label, do not
LEAST_OCCURRENCES = 5  # ours
FROM_NOTES = 0.25  # ours: share of a marker's occurrences whose note may have one of its content words
SIGNATURE = f"markers:1-{LONGEST}grams|common:{COMMON}|certain:{CERTAIN}|from_notes:{FROM_NOTES}"


class Verdicts:
    """Knows the verdict markers of a dataset's rationales."""

    def __init__(self, labels: LabelSet, markers: Iterable[tuple[str, ...]]) -> None:
        self.labels, self.markers = labels, frozenset(markers)

    @classmethod
    def fit(cls, records: Iterable[Record], labels: LabelSet, source: str) -> Verdicts:
        """Learn the markers from the gold rationales of `source` in the train split's `records`.

        Raises:
            NotComputed: labels are not common to all records, or no record has such a rationale.
            MissingExtraError: scikit-learn is not installed.
        """
        if labels.is_open:
            raise NotComputed("the label set is open, but verdicts can only be told of labels common to all records")
        learnt = some_explained(records, source, MOST_RECORDS)
        if not learnt:
            raise NotComputed(f"no training record has a gold rationale of source {source!r} to learn verdicts from")
        return cls(labels, _markers(learnt, source))

    def reasons(self, rationale: str) -> str:
        """The rationale without verdict sentences, the words of all labels masked.

        If nothing else remains, the markers of the verdict sentences are masked instead: a rationale of one sentence
        may have its reasons in it.
        """
        parts = [rationale[start:end] for start, end in sentences(rationale)]
        kept = [part for part in parts if not self.is_verdict(part)] or [self._without_markers(part) for part in parts]
        return mask_label_words(" ".join(kept), self.labels.values)

    def is_verdict(self, sentence: str) -> bool:
        """Whether a sentence has a verdict marker."""
        return any(run in self.markers for _, run in _runs(words_of(sentence)))

    def _without_markers(self, sentence: str) -> str:
        found = list(WORD.finditer(sentence))
        hidden = {
            at + i
            for at, run in _runs([word.group().casefold() for word in found])
            if run in self.markers
            for i in range(len(run))
        }
        pieces, end = [], 0
        for i, word in enumerate(found):
            pieces += [sentence[end : word.start()], MASK if i in hidden else word.group()]
            end = word.end()
        return "".join([*pieces, sentence[end:]])


def _runs(words: Sequence[str]) -> Iterable[tuple[int, tuple[str, ...]]]:
    """Every run of one to `LONGEST` words that begins and ends with a content word, with its place."""
    content = [at for at, word in enumerate(words) if word not in STOP_WORDS]
    for first in content:
        for last in content:
            if 0 <= last - first < LONGEST:
                yield first, tuple(words[first : last + 1])


def _markers(records: Sequence[Record], source: str) -> set[tuple[str, ...]]:
    np = require("numpy", "evaluate")
    vectorizer = require("sklearn.feature_extraction.text", "evaluate").CountVectorizer(
        analyzer=_runs_of_sentences, binary=True, min_df=LEAST_OCCURRENCES
    )
    try:
        occurs: Any = vectorizer.fit_transform(record.rationales[source] for record in records)
    except ValueError:  # no run occurs often enough
        return set()
    names, label_of = np.unique([str(record.label) for record in records], return_inverse=True)
    per_label = np.stack([np.asarray(occurs[label_of == i].sum(axis=0)).ravel() for i in range(len(names))])
    with_label = np.bincount(label_of, minlength=len(names))[:, None]
    certain = per_label >= CERTAIN * per_label.sum(axis=0)
    candidates = np.flatnonzero((certain & (per_label >= COMMON * with_label)).any(axis=0))
    runs = vectorizer.get_feature_names_out()
    notes = [frozenset(map(stem, words_of(record.text))) for record in records]
    columns, markers = occurs.tocsc(), set()
    for column in candidates:
        run = tuple(runs[column].split(" "))
        content = {stem(word) for word in run if word not in STOP_WORDS}
        rows = columns.indices[columns.indptr[column] : columns.indptr[column + 1]]
        if sum(not content.isdisjoint(notes[row]) for row in rows) < FROM_NOTES * len(rows):
            markers.add(run)
    return markers


def _runs_of_sentences(rationale: str) -> list[str]:
    return [" ".join(run) for s, e in sentences(rationale) for _, run in _runs(words_of(rationale[s:e]))]
