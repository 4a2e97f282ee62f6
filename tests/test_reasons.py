"""How reasons are written and checked: by hand, against plain transformers, and through both engines and every door."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from serving import TEXT, train_bundle
from toy import LABELS, run
from toy import record as toy_record
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

import reason2decide as r2d
from reason2decide.cli import app as cli
from reason2decide.data.dataset_folder import DatasetInfo, write_dataset
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import ConfigError
from reason2decide.export.bundle import export_bundle
from reason2decide.method.decoding import guided, plausible
from reason2decide.model.calibration import Calibration
from reason2decide.model.decision import Decision
from reason2decide.model.decoding import Decoding, Draws
from reason2decide.model.explaining import ReasonsToRead, label_posteriors, reason_candidate
from reason2decide.model.predictor import Predictor
from reason2decide.model.prompt_encoder import TokenPrompt
from reason2decide.model.reason_checks import NamedCheck
from reason2decide.model.reasons import Reason, ReasonSettings
from reason2decide.serve import cards
from reason2decide.serve.app import create_app
from reason2decide.serve.fhir import FhirText
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

RECORDS = [
    Record(str(i), f"{30 + i} yo with {what} since 2 days") for i, what in enumerate(("mild rash", "chest pain"))
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_bundle(tmp_path_factory.mktemp("reasons"))


@pytest.fixture(scope="module")
def export(bundle: Path) -> Path:
    out = bundle.parent / "export"
    export_bundle(bundle, out, "float32")
    return out


# ---- Decoding


@pytest.mark.parametrize(("xp", "array"), [(np, np.array), (torch, torch.tensor)])
def test_guidance_by_hand(xp: Any, array: Callable[[Any], Any]) -> None:
    """p = 0.6, 0.35, 0.05; the rival's 0.9, 0.05, 0.05. The third is under a tenth of 0.6; w = 1 prefers the second."""
    own, rival = array([[0.6, 0.35, 0.05]]), array([[0.9, 0.05, 0.05]])
    found = guided(xp, xp.log(own), xp.log(rival), 1.0)[0].tolist()
    assert found[:2] == pytest.approx([math.log(0.6**2 / 0.9), math.log(0.35**2 / 0.05)])
    assert found[2] == -math.inf and np.argmax(found) == 1
    assert guided(xp, xp.log(own), xp.log(rival), 0.0)[0].tolist()[:2] == pytest.approx([math.log(0.6), math.log(0.35)])


@given(st.lists(st.floats(-30, 0), min_size=1, max_size=20))
def test_the_best_token_is_always_plausible(scores: list[float]) -> None:
    row = np.array([scores])
    kept = plausible(np, row)
    assert kept[0, row.argmax()] == row.max()
    assert ((kept > -math.inf) == (row >= row.max() + math.log(0.1))).all()


def test_draws_follow_the_distribution_and_depend_on_their_seed_alone() -> None:
    """Gumbel's trick: the argmax of log p + noise is a draw from p; 4,000 of them, within five standard errors."""
    p = np.array([0.5, 0.3, 0.2])
    draws = Draws([1, None, 1])
    found = [(np.log(p) + draws.noise([0, 1, 2], 3)).argmax(-1) for _ in range(4000)]
    first, greedy, third = np.array(found).T
    assert (first == third).all() and (greedy == 0).all()
    for token, share in enumerate(p):
        assert abs((first == token).mean() - share) < 5 * math.sqrt(share * (1 - share) / 4000)
    assert not np.random.default_rng(2).standard_exponential(600_000, np.float32).all()  # one of these draws is 0
    assert np.isfinite(Draws([2]).noise([0], 600_000)).all()
    alone = Draws([1])
    assert [(np.log(p) + alone.noise([0], 3)).argmax() for _ in range(100)] == first[:100].tolist()


def test_both_engines_write_the_same(bundle: Path, export: Path) -> None:
    """Greedy, guided and drawn, alone and in a batch."""
    torch_engine, onnx_engine = (Predictor.load(path).engine for path in (bundle, export))
    encoder = Predictor.load(bundle).encoder
    ids = encoder.text_ids([record.text for record in RECORDS])
    own, rivals = ([encoder.explain(text, LABELS.values[i]) for text in ids] for i in (0, 2))
    for decoding in (
        Decoding(rivals, 3.0),
        Decoding(seeds=[5, 7], temperature=0.7),
        Decoding(rivals, 1.0, [None, 9], 1.0),
    ):
        whole = torch_engine.generate(own, 24, decoding)
        assert onnx_engine.generate(own, 24, decoding) == whole and any(len(row) > 2 for row in whole)
        for i in (0, 1):
            alone = replace(
                decoding,
                rivals=None if decoding.rivals is None else [decoding.rivals[i]],
                seeds=None if decoding.seeds is None else [decoding.seeds[i]],
            )
            assert torch_engine.generate([own[i]], 24, alone) == onnx_engine.generate([own[i]], 24, alone) == [whole[i]]
    plain = torch_engine.generate(own, 24)
    assert torch_engine.generate(own, 24, Decoding(rivals, 0.0)) == plain
    assert torch_engine.generate(own, 24, Decoding(seeds=[None, None])) == plain


# ---- The label's posterior given a reason


def by_hand(bundle: Path, text: str, reason: str) -> dict[str, float]:
    """P(r | x, y) of each label, one plain pass each, normalised."""
    tokenizer = AutoTokenizer.from_pretrained(bundle / "model")
    model = AutoModelForSeq2SeqLM.from_pretrained(bundle / "model", dtype=torch.float32).eval()
    likelihoods = {}
    for label in LABELS.values:
        prompt = tokenizer(f"given label: {label}, explain: {text}", return_tensors="pt")
        target = tokenizer(reason, return_tensors="pt").input_ids
        with torch.no_grad():
            loss = model(**prompt, labels=target).loss
        likelihoods[label] = math.exp(-float(loss) * target.shape[1])
    return {label: value / sum(likelihoods.values()) for label, value in likelihoods.items()}


@pytest.mark.parametrize("engine", ["bundle", "export"])
def test_the_posterior_of_each_label_given_several_reasons(engine: str, bundle: Path, export: Path) -> None:
    predictor = Predictor.load(bundle if engine == "bundle" else export)
    reasons = ["The chest pain decides.", "Nothing else.", "A mild rash, and so home care."]
    asked = [
        ReasonsToRead(
            predictor.encoder.text_ids([record.text])[0],
            labels,
            [reason_candidate(predictor.encoder, text) for text in reasons],
        )
        for record, labels in zip(RECORDS, (LABELS.values, LABELS.values[::-1]), strict=True)
    ]
    for record, own, table in zip(
        RECORDS, asked, label_posteriors(predictor.engine, predictor.encoder, asked), strict=True
    ):
        expected = np.array([[by_hand(bundle, record.text, text)[label] for text in reasons] for label in own.labels])
        np.testing.assert_allclose(table, expected, rtol=2e-3)
        np.testing.assert_allclose(table.sum(axis=0), 1)


def test_of_several_reasons_the_one_that_tells_its_label_best_is_given(bundle: Path) -> None:
    several = Predictor.load(bundle, reasons=ReasonSettings(best_of=6, check_reasons="off"))
    label = LABELS.values[2]
    (reason,) = several.reasons(RECORDS[:1], [label])
    assert several.reasons(RECORDS, [label] * 2)[0].text == reason.text  # whatever is written beside it
    assert "".join(several.stream(RECORDS[0], label)) == reason.text
    text = RECORDS[0].text
    greedy = Predictor.load(bundle).rationales(RECORDS[:1], [label])[0]
    assert by_hand(bundle, text, reason.text)[label] >= by_hand(bundle, text, greedy)[label] - 1e-6
    writer = several.writer
    (explained,) = several._explained(RECORDS[:1], [label])
    decoding = writer._decoding([(explained, writer.prompt(explained), draft) for draft in range(6)])
    drafts = several.engine.generate([writer.prompt(explained)] * 6, 24, decoding)
    texts = [several.encoder.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in drafts]
    assert len(set(texts)) > 1 and texts[0] == greedy
    supports = {own: by_hand(bundle, text, own)[label] for own in texts}
    assert supports[reason.text] == pytest.approx(max(supports.values()), rel=1e-3)


def test_drafts_that_are_read_alike_count_once(bundle: Path) -> None:
    """Such as differ in spaces only, or after the limit of tokens."""
    writer = Predictor.load(bundle, reasons=ReasonSettings(best_of=2)).writer
    long = "the chest pain decides " * 40
    assert writer._different(["the rash", "the  rash", long, f"{long} and more"]) == ["the rash", long]


def test_guidance_is_against_the_second_choice(bundle: Path) -> None:
    predictor = Predictor.load(bundle, reasons=ReasonSettings(guidance=2.0))
    probabilities = predictor.distributions(RECORDS[:1])[0]
    best, second, _ = sorted(probabilities, key=lambda label: -probabilities[label])
    (explained,) = predictor._explained(RECORDS[:1], [best])
    decoding = predictor.writer._decoding([(explained, TokenPrompt([]), 0)])
    assert decoding.rivals == [predictor.writer.prompt(explained, second)] and decoding.guidance == 2.0
    (other,) = predictor._explained(RECORDS[:1], [second])
    assert predictor.writer._decoding([(other, TokenPrompt([]), 0)]).rivals == [predictor.writer.prompt(other, best)]


def test_a_reason_is_cut_within_the_limit(bundle: Path) -> None:
    encoder = Predictor.load(bundle).encoder
    end = encoder.after[0]
    short, long = (reason_candidate(encoder, "The chest pain decides. " * times) for times in (1, 50))
    assert list(short) == encoder.target_ids(["The chest pain decides."])[0] and short[-1] == end
    assert len(long) == encoder.lengths.rationale and long[-1] == end and end not in long[:-1]


# ---- What a user sees


@pytest.fixture
def strict(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle, with a threshold that no reason reaches."""
    monkeypatch.setattr(Calibration, "support_cutoff", lambda self: 1.1)
    return bundle


@pytest.mark.parametrize(("check", "deferred"), [("flag", False), ("defer", True)])
def test_unsupported_reasons_are_told_everywhere(check: Any, deferred: bool, strict: Path, tmp_path: Path) -> None:
    model = r2d.load(strict, check_reasons=check, error_rate=1.0)
    answer = model.decide(TEXT)
    assert answer.reason_supports is False and answer.reason_support is not None and answer.deferred == deferred
    assert "this reason does not support the decision" in answer._repr_html_()

    cases = tmp_path / "cases.jsonl"
    cases.write_text(json.dumps({"id": "a", "text": TEXT}) + "\n")
    ended = CliRunner().invoke(cli, ["predict", str(strict), str(cases), "--check-reasons", check])
    assert ended.exit_code == 0, ended.output
    row = json.loads(ended.stdout.splitlines()[0])
    assert row["reason_supports"] is False and 0 <= row["reason_support"] <= 1
    assert "1 of 1 reasons do not support their decision" in ended.stderr

    served = ServedModel("triage", strict, reasons=ReasonSettings(check_reasons=check), error_rate=1.0)
    with TestClient(create_app([served], ServeSettings()), base_url="http://localhost") as client:
        body: dict[str, Any] = {"model": "triage", "text": TEXT}
        explained = client.post("/v1/explain", json={**body, "stream": False}).json()
        assert explained["reason_supports"] is False
        events = client.post("/v1/explain", json=body).text
        assert '"reason_supports": false' in events.split("event: done")[1]
        include = {"include": ["rationale", "deferral"]}
        question: dict[str, Any] = {"criteria": dict.fromkeys(LABELS.values)}
        asked: dict[str, Any] = {
            "model": "triage",
            "state": TEXT,
            "questions": {"q": {"type": "choice", **question}},
            **include,
        }
        first = client.post("/v1/systemone", json=asked).json()["answers"]["q"]
        question = {"choices": [{"value": label} for label in LABELS.values]}
        asked = {"model": "triage", "input": TEXT, "questions": [{"type": "choice", **question}], **include}
        second = client.post("/v1/decisions", json=asked).json()["answers"][0]
        for found in (first, second):
            assert found["reason_supports"] is False and found["deferred"] == deferred
    (decision,), (reason,) = served.decide([TEXT]), served.explain([TEXT], [answer.label])
    assert isinstance(decision, Decision)
    card = cards.detail(served.reviewed(decision, reason), reason, FhirText("a", {}), served)
    assert "This reason does not support the decision above" in card
    assert ("a person should decide" in card) == deferred


def test_only_an_unsupported_reason_defers() -> None:
    decision = Decision("a", {"a": 0.9, "b": 0.1}, ("a",), False)
    defer = ReasonSettings(check_reasons="defer")
    assert defer.reviewed(decision, Reason("x", 0.1, False)).deferred
    assert not defer.reviewed(decision, Reason("x", 0.9, True)).deferred
    assert not defer.reviewed(decision, None).deferred
    assert not ReasonSettings(check_reasons="flag").reviewed(decision, Reason("x", 0.1, False)).deferred


# ---- Own choices


@pytest.mark.parametrize(
    ("reason", "supports"),
    [
        ("The ward takes fevers.", True),
        ("At home, or on a ward.", True),
        ("Homes do.", False),
        ("It is a fever.", None),
    ],
)
def test_of_own_choices_the_one_named_is_supported(reason: str, supports: bool | None) -> None:
    assert NamedCheck().checked([reason], ["ward"], [("home", "ward", "home care")]) == [Reason(reason, None, supports)]


def test_a_reason_for_another_of_its_own_choices_is_told(tmp_path: Path) -> None:
    """A model whose only reason names the ward: it does not support what else it decides."""
    places = ("home", "ward", "clinic")
    records = [
        replace(toy_record(i), label=places[i % 3], rationales={"llm": "The ward takes it."}, choices=places)
        for i in range(60)
    ]
    data = write_dataset(
        tmp_path / "data",
        DatasetInfo("own", "t", LabelSet(), ("llm",)),
        {"train": records[:48], "validation": records[48:]},
    )
    bundle = run(data, tmp_path / "run", method="dss", steps=60, learning_rate=5e-3)
    cases = tmp_path / "cases.jsonl"
    cases.write_text("".join(json.dumps({"id": r.id, "text": r.text, "choices": places}) + "\n" for r in records[:12]))
    ended = CliRunner().invoke(cli, ["predict", str(bundle), str(cases)])
    assert ended.exit_code == 0, ended.output
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert {row["rationale"] for row in rows} == {"The ward takes it."}
    others = [row for row in rows if row["predicted_label"] != "ward"]
    assert others and all(row["reason_supports"] is False for row in others)
    assert all(row["reason_supports"] for row in rows if row["predicted_label"] == "ward")
    assert f"{len(others)} of 12 reasons do not support their decision" in ended.stderr
    assert not any("reason_support" in row for row in rows)  # no probability
    strict = Predictor.load(bundle, reasons=ReasonSettings(check_reasons="defer"), error_rate=1.0)
    found = list(strict.predict(records[:12]))
    assert [own.deferred for own in found] == [own.predicted_label != "ward" for own in found]


# ---- Bad input


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"guidance": -1.0}, "guidance is -1.0; expected a number of at least 0"),
        ({"guidance": math.inf}, "guidance is inf"),
        ({"best_of": 0}, "best_of is 0; expected a whole number from 1 to 64"),
        ({"check_reasons": "maybe"}, "check_reasons is 'maybe'; expected one of off, flag, defer"),
    ],
)
def test_impossible_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        ReasonSettings(**values)


def test_models_whose_reasons_cannot_be_checked_or_guided(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Calibration, "support_cutoff", lambda self: None)
        assert r2d.load(bundle).decide(TEXT).reason_supports is None  # the default checks what can be checked
        with pytest.raises(ConfigError, match="'defer' needs a model that was trained and validated on rationales"):
            r2d.load(bundle, check_reasons="defer")
    dss = train_bundle(tmp_path, method="dss", steps=2)
    assert r2d.load(dss).decide(TEXT).reason_supports is not None  # the reader knows nothing of the model
    ended = CliRunner().invoke(cli, ["predict", str(dss), str(tmp_path / "data" / "test.jsonl"), "--best-of", "4"])
    assert isinstance(ended.exception, ConfigError)
    assert "reasons depend on the label, and this one's do not" in str(ended.exception)
