"""Evaluations to make reports of, and the browser to look at them with."""

from __future__ import annotations

import random
import shutil

import numpy as np

from reason2decide.data.predictions import Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.words import STOP_WORDS
from reason2decide.evaluation.comparison import Comparison, Difference, SystemValue
from reason2decide.evaluation.measure import Evaluation, Origin, evaluate
from reason2decide.evaluation.settings import Settings
from reason2decide.evaluation.slices import Column
from reason2decide.model.calibration import Calibration
from reason2decide.report import render_report

LABELS = ("home care", "see a doctor", "call an ambulance")
MARKUP = "<script>document.title = 'taken over'</script><b>bold</b> & \"quoted\""
# What could end a script, open a comment, turn the page's direction, or is no character at all.
HOSTILE = MARKUP + "</script><!--<script>--> ]]> </template> \u202e\u05d0\u05d1 \x00\x01\ufffe \ud83d {{ 7*7 }} ${7*7}"
SEX = "sex"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def training_log():
    rows = [
        {"event": "train", "stage": "stage1", "step": step, "loss": 3 / step, "rationale_loss": 3 / step, "alpha": 0.0}
        for step in range(10, 300, 10)
    ]
    for step in range(10, 300, 10):
        row = {"event": "train", "stage": "stage2", "step": step, "loss": 2 / step, "label_loss": 1 / step}
        rows.append(row | {"alpha": 0.7, "sampling_probability": step / 400, "drawn_share": step / 410})
    rows.append({"event": "validation", "stage": "stage1", "step": 100, "loss": 1.0, "label_loss": None})
    rows.append({"event": "validation", "stage": "stage2", "step": 100, "macro_f1": 0.6, "accuracy": 0.7})
    rows += [{"event": "train", "stage": "stage2"}, {"event": "train", "step": 5, "loss": float("nan")}, {}]
    return rows


def data(n=60, labels=LABELS, text="54F, cough 3/7, denies SOB"):
    """Records of which every fourth is decided wrong, every fifth has no gold rationale, every seventh no own one."""
    records, predictions = [], []
    for i in range(n):
        gold, predicted = labels[i % len(labels)], labels[(i + (i % 4 == 0)) % len(labels)]
        records.append(Record(f"call {i}", text, gold, {"nurse": f"cough {i} days"} if i % 5 else {}))
        probabilities = {label: 0.4 / (len(labels) - 1) for label in labels} | {predicted: 0.6}
        predictions.append(
            Prediction(f"call {i}", predicted, probabilities, "Cough without red flags." if i % 7 else "")
        )
    return records, predictions, LabelSet(tuple(labels))


def evaluation(records, predictions, labels, source="nurse", calibration=None, **options) -> Evaluation:
    origin = Origin("calls", "0" * 64, "test", "ours")
    settings = Settings(rationale_source=source, **{"resamples": 50, **options})
    return evaluate(predictions, records, labels, origin, settings, calibration=calibration)


def report(records, predictions, labels, source="nurse", slices=(), **options) -> str:
    own = evaluation(records, predictions, labels, source, slices=slices)
    columns = [Column.parse(text) for text in slices]
    return render_report(own, columns=columns, **({"title": "A report"} | options))


def long_cases(n: int, seed: int = 0):
    """Cases as long as PubMedQA's (means of 1,436 and 268 characters) of words that repeat as those of English do.

    Sentences come from a pool that grows with the cases, so that what gzip saves is about what it saves on abstracts.
    """
    rng = random.Random(seed)
    letters = "etaoinshrdlcumwfgypbvk"
    made = ["".join(rng.choices(letters, range(22, 0, -1), k=rng.randint(2, 11))) for _ in range(20_000)]
    words = [*sorted(STOP_WORDS), *made]  # as in English, the most frequent words are those that no rationale cites
    shares = [1 / (rank + 3) for rank in range(len(words))]
    flow = iter(rng.choices(words, shares, k=n * 330))
    labels = LabelSet(("yes", "no", "maybe"))
    records, predictions = [], []
    for i in range(n):
        topic = [next(flow) for _ in range(12)]

        def prose(count, about=topic):
            return " ".join(rng.choice(about) if rng.random() < 0.68 else next(flow) for _ in range(count)) + "."

        text = " ".join(prose(33).capitalize() for _ in range(7))
        gold, predicted = labels.values[i % 3], labels.values[i % 5 % 3]
        p = rng.uniform(0.4, 1)
        others = dict.fromkeys(labels.values, (1 - p) / 2)
        records.append(Record(f"{i:08d}", text, gold, {"authors": prose(42, topic[:4])}))
        rationale = f"{text[200:240]} {prose(36, topic[:4])}"
        predictions.append(Prediction(f"{i:08d}", predicted, others | {predicted: p}, rationale))
    return records, predictions, labels


def calibrated(n=60):
    """An evaluation with slices, and a calibration under which everything from 0.6 on is kept."""
    records, predictions, labels = data(n)
    records = [Record(r.id, r.text, r.label, r.rationales, meta={"sex": "FM"[i % 2]}) for i, r in enumerate(records)]
    confidences = np.array([0.9, 0.6] * 60)
    calibration = Calibration(2.0, confidences, np.ones(120, bool), confidences)
    return evaluation(records, predictions, labels, calibration=calibration, slices=(SEX,))


def comparison(better="r2d", warnings=()):
    def value(mean, spread=0.01):
        return SystemValue(mean, mean - 0.05, mean + 0.05, spread, (mean, mean), 100)

    def difference(system, metric, gap, p):
        return Difference(system, metric, gap, gap - 0.05, gap + 0.05, 100, p / 2, p / 3, p, None)

    return Comparison(
        "sft",
        "calls",
        "test",
        ("accuracy", "under_triage"),
        {
            better: {"accuracy": value(0.8), "under_triage": value(0.1)},
            "sft": {"accuracy": value(0.7), "under_triage": value(0.2), "bleu": value(20.0)},
            "dss": {"accuracy": value(0.6), "under_triage": value(0.2)},
        },
        (
            difference(better, "accuracy", 0.1, 0.001),
            difference(better, "under_triage", -0.1, 0.001),
            difference("dss", "accuracy", -0.1, 0.04),
            difference("dss", "under_triage", 0.0, 0.9),
        ),
        warnings,
    )
