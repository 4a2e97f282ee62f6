"""Text first, chat templates, one pass: each step's gradient against one built by hand, record by record, from strings.

By hand means: whole prompts and answers as strings, one plain forward pass an answer without cache or padding.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file
from test_objective import distance, drawn, steps  # noqa: F401
from tiny_models import save
from torch import Tensor
from toy import LABELS, run, write_contrasted, write_toy
from transformers import AutoTokenizer

import reason2decide as r2d
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import Record
from reason2decide.export.bundle import export_bundle
from reason2decide.method.prompts import body
from reason2decide.model.bundle import load_bundle
from reason2decide.model.explaining import ReasonsToRead, label_posteriors, reason_candidate
from reason2decide.model.predictor import Predictor
from reason2decide.model.reasons import ReasonSettings
from reason2decide.serve.app import create_app
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

STEPS, CAP, SEED = 4, 0.9, 0
LAYOUTS = ("two-prompt", "one-pass")
FORMS = [("t5", "one-pass"), ("bart", "one-pass"), *product(("qwen3", "qwen3-chat", "gemma3"), LAYOUTS)]
Step = tuple[dict[str, Tensor], dict[str, Tensor]]


class ByHand:
    """A trained model, its weights replaced, and its prompts as strings."""

    def __init__(self, bundle: Path, kind: str, layout: str) -> None:
        loaded = load_bundle(bundle)
        self.model, self.tokenizer = loaded.model, AutoTokenizer.from_pretrained(bundle / "model")
        self.one_pass, self.chat = layout == "one-pass", kind.endswith("-chat")
        self.end = self.tokenizer.eos_token

    def asked(self, text: str, task: str, label: str | None) -> tuple[str, str]:
        """What the encoder reads (empty without one), and what is read before the answer."""
        gap = "" if self.model.config.is_encoder_decoder else " "
        before = f"{gap}{label}{self.end}" if label is not None and self.one_pass else ""
        words = "predict:" if task == "predict" or before else f"given label: {label}, explain:"
        if self.model.config.is_encoder_decoder:
            opens = "<s>" if before and self.tokenizer.bos_token else ""
            return f"{words} {text}", opens + before
        if self.chat:
            return "", f"<start>user: {text}\n{words}<turn><start>assistant:{before}"
        return "", f"<s>{text}\n{words}{before}"

    def answer(self, text: str) -> list[int]:
        """The tokens of an answer, end token last."""
        if self.model.config.is_encoder_decoder:
            return list(self.tokenizer(text).input_ids)
        return list(self.tokenizer(f" {text}{self.end}", add_special_tokens=False).input_ids)

    def nll(self, text: str, task: str, label: str | None, target: str) -> Tensor:
        """-log P(target | text, task, label), summed over the target's tokens."""
        read, before = self.asked(text, task, label)
        given = list(self.tokenizer(before, add_special_tokens=False).input_ids)
        answer = self.answer(target)
        if read:
            given = [self.model.config.decoder_start_token_id, *given]
            ids = {"input_ids": torch.tensor([self.tokenizer(read).input_ids])}
            ids["decoder_input_ids"] = torch.tensor([[*given, *answer[:-1]]])
        else:
            ids = {"input_ids": torch.tensor([[*given, *answer[:-1]]])}
        logits = self.model(**ids, use_cache=False).logits[0, -len(answer) :]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")

    def predicted(self, text: str) -> list[str]:
        """The labels, the most probable first."""
        with torch.no_grad():
            return sorted(LABELS.values, key=lambda label: float(self.nll(text, "predict", None, label)))

    def gradient(self, weights: dict[str, Tensor], loss: Any) -> dict[str, Tensor]:
        self.model.load_state_dict(weights, strict=False)
        self.model.zero_grad()
        loss().backward()
        return {
            name: torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in self.model.named_parameters()
        }


@pytest.mark.parametrize(("kind", "layout"), FORMS)
def test_a_step_is_the_equation_in_every_form(
    kind: str,
    layout: str,
    dataset: DatasetFolder,
    tmp_path: Path,
    steps: list[Step],  # noqa: F811
) -> None:
    """The text is read once for both tasks, and the gradient is that of reading it for each."""
    bundle = run(
        dataset,
        tmp_path / "run",
        base=str(save(kind, tmp_path / "base")),
        layout=layout,
        method="r2d-no-stage1",
        steps=STEPS,
        batch_size=12,
        gradient_accumulation=4,
        dropout=0.0,
        warmup_share=0.0,
        ramp_share=0.5,
        sampling_cap=CAP,
        alpha=0.7,
        learning_rate=3e-3,
        optimizer="adamw",
    )
    hand, records = ByHand(bundle, kind, layout), list(dataset.split("train"))
    explained = [record for record in records if "llm" in record.rationales]
    wrong = 0
    for step in (0, STEPS - 1):  # before sampling, and at its cap
        weights, gradient = steps[step]
        pi = 0.0 if step == 0 else CAP

        def shown(record: Record, step: int = step, pi: float = pi) -> str:
            return hand.predicted(record.text)[0] if drawn(pi, step, record.id) else str(record.label)

        def loss(shown: Any = shown) -> Tensor:
            nonlocal wrong
            labels = sum(hand.nll(r.text, "predict", None, str(r.label)) for r in records)
            rationales: Any = 0.0
            for record in explained:
                label = shown(record)
                wrong += label != record.label
                rationales = rationales + hand.nll(record.text, "explain", label, record.rationales["llm"])
            label_tokens = sum(len(hand.answer(str(record.label))) for record in records)
            rationale_tokens = sum(len(hand.answer(record.rationales["llm"])) for record in explained)
            result: Tensor = 0.7 * labels / label_tokens + 0.3 * rationales / rationale_tokens
            return result

        assert distance(gradient, hand.gradient(weights, loss)) < 1e-4, step
    assert wrong > 1  # else this would not tell y^ from y*


@pytest.mark.parametrize(
    ("kind", "layout"),
    [("bart", "two-prompt"), ("t5", "one-pass"), ("qwen3", "two-prompt"), ("qwen3-chat", "one-pass")],
)
def test_a_records_own_choices_read_at_use_as_in_training(kind: str, layout: str, tmp_path: Path) -> None:
    """There head and text are tokenised apart, so that long texts can be read in parts."""
    dataset = write_toy(tmp_path / "data")
    predictor = Predictor.load(run(dataset, tmp_path / "run", base=str(save(kind, tmp_path / "base")), layout=layout))
    own = Record("own", "Pt has fever", choices=("yes", "no"))
    (read,) = predictor._texts([own])
    assert read.part(0) == predictor.encoder.text_ids([body(own.text, own.choices)])[0]


@pytest.mark.parametrize(("kind", "layout"), [("t5", "one-pass"), ("qwen3", "one-pass"), ("qwen3", "two-prompt")])
def test_reasons_are_those_of_each_text_alone(kind: str, layout: str, tmp_path: Path) -> None:
    """Contrasts, the posterior, guidance and drafts work in every form; labels of unlike lengths share a batch."""
    dataset = write_contrasted(tmp_path / "data")
    bundle = run(
        dataset,
        tmp_path / "run",
        base=str(save(kind, tmp_path / "base")),
        layout=layout,
        method="r2d-contrast-posterior",
        sampling_cap=1.0,
        ramp_share=0.1,
        posterior_share=1.0,
    )
    records = list(dataset.split("test"))
    labels = [LABELS.values[index % 3] for index in range(len(records))]
    for settings in (ReasonSettings(), ReasonSettings(guidance=2.0), ReasonSettings(best_of=3)):
        predictor = Predictor.load(bundle, reasons=settings)
        together = predictor.rationales(records, labels)
        alone = [predictor.rationales([record], [label])[0] for record, label in zip(records, labels, strict=True)]
        assert together == alone

    hand, predictor = ByHand(bundle, kind, layout), Predictor.load(bundle)
    encoder, record = predictor.encoder, records[0]
    text, reason = encoder.text_ids([record.text])[0], "The chest pain decides."
    asked = ReasonsToRead(text, LABELS.values, [reason_candidate(encoder, reason)])
    (found,) = label_posteriors(predictor.engine, encoder, [asked])
    with torch.no_grad():
        own = torch.stack([-hand.nll(record.text, "explain", label, reason) for label in LABELS.values]).softmax(0)
    assert found[:, 0].tolist() == pytest.approx(own.tolist(), abs=1e-4)


@pytest.mark.parametrize(("kind", "layout"), [("t5", "one-pass"), ("qwen3", "two-prompt"), ("qwen3-chat", "one-pass")])
def test_an_export_decides_and_writes_the_same(kind: str, layout: str, dataset: DatasetFolder, tmp_path: Path) -> None:
    """The form of its prompts goes with the bundle: an export needs no chat template. Guided reasons are the same."""
    base = save(kind, tmp_path / "base")
    bundle = run(dataset, tmp_path / "run", base=str(base), layout=layout, method="r2d-posterior")
    export_bundle(bundle, tmp_path / "export", weights="float32")
    records = list(dataset.split("test"))
    for settings in (ReasonSettings(), ReasonSettings(guidance=2.0), ReasonSettings(best_of=2)):
        own, exported = (
            list(Predictor.load(path, reasons=settings).predict(records)) for path in (bundle, tmp_path / "export")
        )
        for one, other in zip(own, exported, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
            assert one.rationale == other.rationale


@pytest.mark.parametrize(("kind", "layout"), [("t5", "one-pass"), ("qwen3", "two-prompt")])
def test_a_text_is_read_once_to_decide_and_to_explain(
    kind: str, layout: str, dataset: DatasetFolder, tmp_path: Path
) -> None:
    bundle = run(dataset, tmp_path / "run", base=str(save(kind, tmp_path / "base")), layout=layout)
    predictor, read = Predictor.load(bundle), []
    architecture = predictor.engine.architecture  # type: ignore[attr-defined]
    original = architecture.read

    def counted(texts: Any, *rest: Any) -> Any:
        read.extend(texts)
        return original(texts, *rest)

    architecture.read = counted
    records = list(dataset.split("test"))
    assert len(list(predictor.predict(records))) == len(records) == len(read)


@pytest.mark.parametrize(("kind", "layout"), [("t5", "one-pass"), ("qwen3", "two-prompt"), ("qwen3", "one-pass")])
def test_checkpointed_activations_change_nothing(
    kind: str, layout: str, dataset: DatasetFolder, tmp_path: Path
) -> None:
    """Then no cache may be kept, so texts are read for each task; the steps are the same."""
    base, trained = save(kind, tmp_path / "base"), []
    for checkpointed in (False, True):
        out = tmp_path / str(checkpointed)
        bundle = run(dataset, out, base=str(base), layout=layout, gradient_checkpointing=checkpointed, dropout=0.0)
        trained.append(load_bundle(bundle).model.state_dict())
    start = load_file(base / "model.safetensors")
    moved, other = ({name: state[name] - start[name] for name in start} for state in trained)
    assert distance(moved, other) < 1e-3


def test_a_model_without_an_encoder_is_evaluated_and_served(dataset: DatasetFolder, tmp_path: Path) -> None:
    """Report, probes, and the server know nothing of the kind of model."""
    bundle = run(dataset, tmp_path / "run", base=str(save("qwen3-chat", tmp_path / "base")), layout="one-pass")
    results = r2d.evaluate(bundle, dataset.path, rationale_source="llm", probed=4)
    assert results.accuracy.value is not None and results.swap_change.value is not None
    question = {"type": "choice", "criteria": dict.fromkeys(LABELS.values)}
    asked = {"model": "m", "state": "30 yo with chest pain", "questions": {"d": question}, "include": ["rationale"]}
    with TestClient(create_app([ServedModel("m", bundle)], ServeSettings()), base_url="http://localhost") as client:
        reply = client.post("/v1/systemone", json=asked).json()
    assert sum(reply["answers"]["d"]["probabilities"].values()) == pytest.approx(1) and "d" in reply["rationales"]
