"""Simulators: readers independent of any model, which guess the label from a text, a rationale, or both.

If a model judges its own rationales, a shared quirk passes for a reason. These readers learn only from rationales of
the train split, never from a model's: from the gold ones, and from those for other labels where it has any, since who
has read only why a call is urgent takes "against this speaks the chest pain" for urgent too. They are bags of phrases,
so they read only what is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.words import WORD, mask_label_words
from reason2decide.errors import NotComputed, require
from reason2decide.evaluation.sampling import some_explained
from reason2decide.evaluation.verdicts import Verdicts

MOST_RECORDS = 20_000  # ours: upper limit for training; bags of words gain little from more
MOST_ARGUED = 4_000  # ours: records of these whose contrasts are read too
MOST_FEATURES = 50_000  # ours: the most frequent phrases are kept, which bounds memory
LONGEST = 3  # ours: words of a phrase; on synthetic calls better than 2, and than weighing them by TF-IDF
STRENGTH = 1.0  # ours: inverse of the L2 penalty
ITERATIONS = 1000  # ours
SIGNATURE = (
    f"binary-1-{LONGEST}grams+logistic-regression|records:{MOST_RECORDS}|contrasts of:{MOST_ARGUED}"
    f"|features:{MOST_FEATURES}|C:{STRENGTH:g}"
)
# What each reader reads. Two parts give separate features: a word in the text is not the same word in the rationale.
READERS = {
    "text": ("text",),
    "rationale": ("rationale",),
    "masked_rationale": ("masked_rationale",),
    "reasons": ("reasons",),
    "both": ("text", "rationale"),
}


class Simulators:
    """One reader for each entry of `READERS`: phrases of up to three words, and scikit-learn's logistic regression.

    Classes are balanced. The readers share nothing with a model and depend on the train split alone. They know little
    of triage: compare their figures between systems on the same dataset, not with 1.
    """

    def __init__(
        self, labels: LabelSet, verdicts: Verdicts, words: Mapping[str, Any], readers: Mapping[str, Any]
    ) -> None:
        self.labels, self._verdicts, self._words, self._readers = labels, verdicts, words, readers

    @classmethod
    def fit(cls, records: Iterable[Record], labels: LabelSet, source: str) -> Simulators:
        """Learn the gold label from the texts and the gold rationales of `source` in the train split's `records`.

        At most `MOST_RECORDS` with such a rationale are used, those with the lowest hashes of their ids. Readers of
        rationales also learn from the contrasts of at most `MOST_ARGUED` of them, which together weigh as much as the
        gold rationale beside them.

        Raises:
            NotComputed: labels are not common to all records, or the records with a rationale have fewer than two
                labels or no words to learn from.
            MissingExtraError: scikit-learn is not installed.
        """
        feature_extraction = require("sklearn.feature_extraction.text", "evaluate")
        linear_model = require("sklearn.linear_model", "evaluate")
        if labels.is_open:
            raise NotComputed("the label set is open, but simulators need labels that are common to all records")
        learnt = some_explained(records, source, MOST_RECORDS)
        _require_common_labels(learnt)
        gold = [record.label for record in learnt]
        if len(set(gold)) < 2:
            raise NotComputed(
                f"{len(learnt)} training records have a gold rationale of source {source!r}, with {len(set(gold))} "
                "different labels, but simulators need at least two; name another source"
            )
        verdicts = Verdicts.fit(learnt, labels, source)
        argued, weights = _contrasts(learnt, source)
        read = _parts(
            [record.text for record in learnt],
            [*(record.rationales[source] for record in learnt), *(text for _, text in argued)],
            verdicts,
        )
        words: dict[str, Any] = {}
        features: dict[str, Any] = {}
        for part, texts in read.items():
            words[part] = feature_extraction.CountVectorizer(
                ngram_range=(1, LONGEST), binary=True, token_pattern=WORD.pattern, max_features=MOST_FEATURES
            )
            try:
                features[part] = words[part].fit_transform(texts)
            except ValueError:  # without a word to learn from, as masked rationales may be
                if part in ("text", "rationale"):
                    raise NotComputed(f"no {part} of source {source!r} in training has a word to learn from") from None
        told = [*gold, *(label for label, _ in argued)]
        readers = {}
        for reader, parts in READERS.items():
            if features.keys() >= {*parts}:
                # A text is read with the gold rationale only.
                rows = len(learnt) if "text" in parts else len(told)
                model = linear_model.LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=ITERATIONS)
                known = _side_by_side([features[part][:rows] for part in parts])
                readers[reader] = model.fit(known, told[:rows], sample_weight=weights[:rows])
        return cls(labels, verdicts, words, readers)

    def simulate(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> list[dict[str, str]]:
        """`Probe.simulated` for each prediction; without a rationale, only the label read from the text.

        Raises:
            NotComputed: a record has choices of its own.
        """
        _require_common_labels(records)
        simulated = [{"text": label} for label in self._read("text", {"text": [record.text for record in records]})]
        explained = [i for i, prediction in enumerate(predictions) if (prediction.rationale or "").strip()]
        read = _parts(
            [records[i].text for i in explained], [predictions[i].rationale or "" for i in explained], self._verdicts
        )
        for reader in [reader for reader in self._readers if reader != "text" and explained]:
            for i, label in zip(explained, self._read(reader, read), strict=True):
                simulated[i][reader] = label
        return simulated

    def read_rationales(self, rationales: Sequence[str]) -> list[str]:
        """The label read from each rationale alone."""
        return self._read("rationale", {"rationale": rationales})

    def read_reasons(self, rationales: Sequence[str]) -> list[str]:
        """The label read from each rationale without its verdict; none if training has nothing but verdicts."""
        if "reasons" not in self._readers:
            return []
        return self._read("reasons", {"reasons": [self._verdicts.reasons(rationale) for rationale in rationales]})

    def _read(self, reader: str, read: Mapping[str, Sequence[str]]) -> list[str]:
        parts = READERS[reader]
        if not read[parts[0]]:
            return []
        features = _side_by_side([self._words[part].transform(read[part]) for part in parts])
        labels: list[str] = self._readers[reader].predict(features).tolist()
        return labels


def _contrasts(records: Sequence[Record], source: str) -> tuple[list[tuple[str, str]], list[float]]:
    """The contrasts of the first `MOST_ARGUED` records as (label, text); weights of gold rationales, then of these."""
    by_record = [
        [(label, text) for label, text in record.contrasts.get(source, {}).items() if text.strip()]
        for record in records[:MOST_ARGUED]
    ]
    weights = [1 / len(own) for own in by_record for _ in own]
    return [item for own in by_record for item in own], [1.0] * len(records) + weights


def _parts(texts: Sequence[str], rationales: Sequence[str], verdicts: Verdicts) -> dict[str, Sequence[str]]:
    masked = [mask_label_words(rationale, verdicts.labels.values) for rationale in rationales]
    reasons = [verdicts.reasons(rationale) for rationale in rationales]
    return {"text": texts, "rationale": rationales, "masked_rationale": masked, "reasons": reasons}


def _side_by_side(blocks: Sequence[Any]) -> Any:
    return blocks[0] if len(blocks) == 1 else require("scipy.sparse", "evaluate").hstack(blocks).tocsr()


def _require_common_labels(records: Iterable[Record]) -> None:
    with_choices = sum(record.choices is not None for record in records)
    if with_choices:
        raise NotComputed(
            f"{with_choices} records have choices of their own, but simulators need labels common to all records"
        )
