"""Two passes, held against plain transformers: the calibrated label first, then the reason for that very label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from reason2decide.data.records import LabelSet, Record
from reason2decide.model.calibration import Calibration
from reason2decide.model.manifest import Manifest
from reason2decide.model.predictor import Predictor
from reason2decide.model.prompt_encoder import Lengths
from reason2decide.training.save import save_bundle

LABELS = LabelSet(("no rash", "no cough", "no fever"))  # of like lengths: texts decide between them
TEMPERATURE = 2.5
OUTCOMES = np.array([0.9, 0.6])
LENGTHS = Lengths(input=128, rationale=12, label=40)
# Of unlike lengths, in no order: batches are formed by length, answers come in the order of the question.
TEXTS = [
    "Fever & cough since 2 days; no rash. Pt is 34 yo, denies SOB.",
    "rash",
    "c/o chest pain x 3 d, see a doctor",
    "no cough",
    "the findings, as told: fever, cough, rash, chest pain since 24 hours within 3 days",
    "Pt is 34 yo",
]


def new_bundle(folder: Path, method: str) -> Path:
    """An untrained model whose labels and rationales vary with the prompt, and a temperature that changes much."""
    model, tokenizer = build("t5")
    for name, weight in model.named_parameters():
        if "layer_norm" not in name and "shared" not in name:
            weight.data *= 3  # prompts differ more in what follows
    log = folder / "log.jsonl"
    log.write_text("")
    manifest = Manifest(method, "t5", LABELS, LENGTHS, {}, {"name": "made up", "sha256": {}}, {}, {}, "2026-01-01")
    save_bundle(
        folder / "bundle",
        manifest,
        model,
        tokenizer,
        Calibration(TEMPERATURE, OUTCOMES, OUTCOMES > 0.7, OUTCOMES),
        config_toml="",
        training_log=log,
    )
    return folder / "bundle"


class Plain:
    """The same model by transformers alone, one prompt at a time."""

    def __init__(self, bundle: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(bundle / "model")
        self.model = AutoModelForSeq2SeqLM.from_pretrained(bundle / "model", dtype=torch.float32).eval()

    @torch.no_grad()
    def scores(self, text: str) -> np.ndarray:
        """log P(label | "predict: {x}") of each label."""
        prompt = torch.tensor([self.tokenizer(f"predict: {text}").input_ids])
        found = []
        for label in LABELS.values:
            target = torch.tensor([self.tokenizer(label).input_ids])
            found.append(-float(self.model(input_ids=prompt, labels=target).loss) * target.numel())
        return np.array(found)

    @torch.no_grad()
    def continuation(self, prompt: str) -> str:
        """What is written greedily after a prompt, token by token without a cache."""
        ids = torch.tensor([self.tokenizer(prompt).input_ids])
        written = [self.model.config.decoder_start_token_id]
        for _ in range(LENGTHS.rationale):
            token = int(self.model(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits[0, -1].argmax())
            if token == self.tokenizer.eos_token_id:
                break
            written.append(token)
        return str(self.tokenizer.decode(written[1:], skip_special_tokens=True)).strip()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_bundle(tmp_path_factory.mktemp("predictor"), "r2d")


@pytest.fixture(scope="module")
def records(bundle: Path) -> list[Record]:
    """Cases whose gold label is never the one the model decides on, and whose rationale depends on which is given."""
    plain = Plain(bundle)
    found = []
    for index, text in enumerate(TEXTS):
        best = int(plain.scores(text).argmax())
        found.append(Record(f"case {index}", text, LABELS.values[best - 1], {"llm": "A gold reason."}))
        written = {plain.continuation(f"given label: {label}, explain: {text}") for label in LABELS.values}
        assert len(written) > 1, "this model's rationales must tell which label they were asked for"
    assert len({record.label for record in found}) > 1
    return found


def test_probabilities_are_calibrated_and_the_reason_is_of_the_decision(bundle: Path, records: list[Record]) -> None:
    plain = Plain(bundle)
    predictions = list(Predictor.load(bundle).predict(records))
    assert [prediction.id for prediction in predictions] == [record.id for record in records]
    for record, prediction in zip(records, predictions, strict=True):
        scores = plain.scores(record.text)
        label = LABELS.values[int(scores.argmax())]
        assert prediction.predicted_label == label != record.label
        odds = np.exp((scores - scores.max()) / TEMPERATURE)
        assert prediction.probabilities is not None
        assert list(prediction.probabilities) == list(LABELS.values)
        np.testing.assert_allclose(list(prediction.probabilities.values()), odds / odds.sum(), rtol=1e-4)
        assert prediction.rationale == plain.continuation(f"given label: {label}, explain: {record.text}")


def test_uncalibrated_on_request(bundle: Path, records: list[Record]) -> None:
    plain = Plain(bundle)
    for record, found in zip(records, Predictor.load(bundle).distributions(records, calibrated=False), strict=True):
        odds = np.exp(plain.scores(record.text))
        np.testing.assert_allclose(list(found.values()), odds / odds.sum(), rtol=1e-4)


def test_the_reason_for_another_label_on_request(bundle: Path, records: list[Record]) -> None:
    """Rationales come in the order of the records, each given its own label; a stream writes the same."""
    plain, predictor = Plain(bundle), Predictor.load(bundle)
    labels = [LABELS.values[(index + 1) % 3] for index in range(len(records))]
    expected = [
        plain.continuation(f"given label: {label}, explain: {record.text}")
        for record, label in zip(records, labels, strict=True)
    ]
    assert predictor.rationales(records, labels) == expected
    assert [
        "".join(predictor.stream(own, label)).strip() for own, label in zip(records, labels, strict=True)
    ] == expected


def test_a_method_that_conditions_on_nothing_is_asked_without_a_label(tmp_path: Path, records: list[Record]) -> None:
    bundle = new_bundle(tmp_path, "dss")
    plain = Plain(bundle)
    for record, prediction in zip(records, Predictor.load(bundle).predict(records), strict=True):
        assert prediction.rationale == plain.continuation(f"explain: {record.text}")


def test_a_model_that_defers_everything_says_so(tmp_path: Path) -> None:
    bundle = new_bundle(tmp_path, "r2d")
    assert "its 2 validation records show no confidence above which the error rate is kept" in (
        Predictor.load(bundle).caution or ""
    )
    assert Predictor.load(bundle, error_rate=1.0).caution is None
