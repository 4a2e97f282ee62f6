"""Choose the cases that a report shows, prepare their views, and pack them for the case browser."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np

from reason2decide.data.predictions import NO_ANSWER, Prediction
from reason2decide.data.records import Record
from reason2decide.evaluation.metrics import Examples
from reason2decide.evaluation.metrics.support import cited_spans
from reason2decide.evaluation.slices import Column, slice_records

STATIC_CASES = 20  # on paper, and where scripts do not run
MAX_CASES = 5000  # ours
MAX_BARS = 8  # ours: probabilities shown for a case; open and long label sets have more
NUMBER_OF = {"right": 0, "wrong": 1, "unanswered": 2}  # the codes of verdicts in the script

Case = tuple[Record, Prediction]


@dataclass(frozen=True)
class Bar:
    """The probability of one label of a case, in per cent to one decimal."""

    label: str
    percent: float
    predicted: bool
    gold: bool


@dataclass(frozen=True)
class CaseView:
    """One case as the page shows it.

    `text` alternates between parts that the rationale does not cite and parts that it cites, starting with the former,
    which may be empty. `verdict` is `right`, `wrong` or `unanswered`; `slices` are its values of the sliced columns;
    `doubted` whether the rationale was found not to support the decision.
    """

    id: str
    verdict: str
    gold: str
    predicted: str
    text: tuple[str, ...]
    bars: tuple[Bar, ...]
    other_bars: int
    rationale: str
    gold_rationale: str
    slices: tuple[str, ...]
    doubted: bool = False


# What the script clones and fills: every part exists once.
BLANK = CaseView("", "wrong", "", "", ("",), (Bar("", 0, False, True),), 0, "", "", (), True)


class CaseViews:
    """The views of an evaluation's cases. `values_of` has the values of each column in order."""

    def __init__(self, examples: Examples, columns: Sequence[Column] = ()) -> None:
        self.examples = examples
        masks = {column.name: slice_records(examples.records, column) for column in columns}
        self.values_of = {name: list(by_value) for name, by_value in masks.items()}
        # For each column, the index of each record's value.
        self._value_of = [np.argmax(list(by_value.values()), axis=0) for by_value in masks.values()]
        self._place = {record.id: i for i, record in enumerate(examples.records)}
        self._views: dict[str, CaseView] = {}

    def chosen(self, count: int) -> list[CaseView]:
        """The views of `count` cases, chosen by `select_cases`."""
        examples = self.examples
        cases = select_cases(examples.records, examples.predictions, examples.labels.values, count)
        return [self._views.get(case[0].id) or self._view(case) for case in cases]

    def packed(self, budget: int) -> tuple[str, int]:
        """The cases packed into about `budget` characters, at least 1 and at most `MAX_CASES`, and their number."""
        count = min(MAX_CASES, len(self.examples))
        while True:
            data = pack(self.chosen(count), self.examples.labels.values)
            if len(data) <= budget or count == 1:
                return data, count
            count = max(1, int(0.97 * count * budget / len(data)))

    def _view(self, case: Case) -> CaseView:
        record, prediction = case
        source = self.examples.rationale_source
        bars, other_bars = _bars(case, record.choices_or(self.examples.labels))
        place = self._place[record.id]
        view = self._views[record.id] = CaseView(
            record.id,
            verdict(case),
            record.label or "",
            prediction.predicted_label,
            marked_parts(record.text, prediction.rationale or ""),
            bars,
            other_bars,
            prediction.rationale or "",
            record.rationales.get(source, "") if source else "",
            tuple(
                values[index_of[place]]
                for values, index_of in zip(self.values_of.values(), self._value_of, strict=True)
            ),
            prediction.reason_supports is False,
        )
        return view


def select_cases(
    records: Sequence[Record], predictions: Sequence[Prediction], labels: Sequence[str], count: int = STATIC_CASES
) -> list[Case]:
    """Choose `count` cases by a fixed rule: half wrong and half right if there are enough, spread over gold labels.

    Ids break ties, not the order of records. Wrong cases come first, each half in the order of `labels`.
    """
    by_id = {prediction.id: prediction for prediction in predictions}
    rank = {label: i for i, label in enumerate(labels)}
    pairs = sorted(((record, by_id[record.id]) for record in records), key=lambda pair: _order(pair, rank))
    wrong = _spread([pair for pair in pairs if verdict(pair) != "right"], rank)
    right = _spread([pair for pair in pairs if verdict(pair) == "right"], rank)
    wrong_count = min(len(wrong), max(count // 2, count - len(right)))
    halves = wrong[:wrong_count], right[: count - wrong_count]
    return [case for half in halves for case in sorted(half, key=lambda pair: _order(pair, rank))]


def verdict(case: Case) -> str:
    """`right`, `wrong`, or `unanswered` for a system that gave no valid answer, which is wrong too."""
    if case[1].predicted_label == NO_ANSWER:
        return "unanswered"
    return "right" if case[0].label == case[1].predicted_label else "wrong"


def _order(case: Case, rank: Mapping[str, int]) -> tuple[int, str]:
    """Sort by gold label, then by a hash of the id, independent of the data's order; labels outside the set last."""
    return rank.get(case[0].label or "", len(rank)), hashlib.sha256(case[0].id.encode()).hexdigest()


def _spread(cases: Sequence[Case], rank: Mapping[str, int]) -> list[Case]:
    """All cases, one from each gold label in turn."""
    buckets: dict[int, list[Case]] = {}
    for case in cases:
        buckets.setdefault(rank.get(case[0].label or "", len(rank)), []).append(case)
    return [case for turn in zip_longest(*buckets.values()) for case in turn if case is not None]


def marked_parts(text: str, rationale: str) -> tuple[str, ...]:
    """The text split at the ends of the spans that the rationale cites; every second part is cited."""
    cuts = [0, *(end for span in cited_spans(text, rationale) for end in span), len(text)]
    return tuple(text[start:end] for start, end in pairwise(cuts))


def _bars(case: Case, choices: Sequence[str]) -> tuple[tuple[Bar, ...], int]:
    """Bars of the likeliest, the predicted and the gold label, in the order of the choices; the number of others."""
    record, prediction = case
    probabilities = prediction.probabilities or {}
    order = [label for label in choices if label in probabilities]
    likely = sorted(order, key=lambda label: -probabilities[label])[:MAX_BARS]
    shown = {*likely, prediction.predicted_label, record.label}
    bars = tuple(
        Bar(label, round(100 * probabilities[label], 1), label == prediction.predicted_label, label == record.label)
        for label in order
        if label in shown
    )
    return bars, len(order) - len(bars)


def pack(cases: Sequence[CaseView], labels: Sequence[str]) -> str:
    """Pack cases as base64 of gzip of JSON, for `templates/browser.js`; the same cases give the same characters.

    They are stored by column, which is a tenth smaller than by case. Labels are indices into a table, `labels` first,
    then the cases' other labels; no answer is -1. `parts` are lengths in UTF-16 code units, as in JavaScript.
    """
    table = {label: i for i, label in enumerate(labels)}

    def index(label: str) -> int:
        return -1 if label == NO_ANSWER else table.setdefault(label, len(table))

    columns: dict[str, Sequence[Any]] = {
        "id": [case.id for case in cases],
        "verdict": [NUMBER_OF[case.verdict] for case in cases],
        "gold": [index(case.gold) for case in cases],
        "predicted": [index(case.predicted) for case in cases],
        "bars": [[(index(bar.label), bar.percent) for bar in case.bars] for case in cases],
        "others": [case.other_bars for case in cases],
        "slices": [case.slices for case in cases],
        "text": ["".join(case.text) for case in cases],
        "parts": [[len(part.encode("utf-16-le", "replace")) // 2 for part in case.text] for case in cases],
        "rationale": [case.rationale for case in cases],
        "gold_rationale": [case.gold_rationale for case in cases],
        "doubted": [int(case.doubted) for case in cases],
    }
    data = json.dumps({"labels": list(table), "columns": columns}, ensure_ascii=False, separators=(",", ":"))
    # Unpaired surrogates, which some systems' answers contain, cannot be written; a question mark replaces them.
    return base64.b64encode(gzip.compress(data.encode("utf-8", "replace"), mtime=0)).decode()
