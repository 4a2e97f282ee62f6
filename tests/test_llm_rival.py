"""Language models as rivals: the same files and metrics as our own models, and nothing unanswered is dropped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import takewhile

import pytest
from llm_server import filled, probabilities
from llm_toy import LABELS, at, marked, r2d, write_calls
from narrowing import present

from reason2decide.data.predictions import read_predictions
from reason2decide.data.records import LabelSet, Record
from reason2decide.evaluation.results import read_results
from reason2decide.llm.answers import decided_schema
from reason2decide.llm.client.calls import Call
from reason2decide.llm.client.client import Client
from reason2decide.llm.client.endpoint import Endpoint
from reason2decide.llm.client.log import CallLog
from reason2decide.llm.client.structured import strict_schema
from reason2decide.llm.rival import ChatRival, DecisionRival, draw_examples, make_rival
from reason2decide.workflows.decisions import fit_calibration

QUICK = ("--resamples", 50)
ORDINAL = LabelSet(LABELS.values, ordinal=True, urgent="last")


def zero_shot(server, data, out, *options, code=0):
    ended = r2d("zero-shot", data.path, "--out", out, *at(server), *QUICK, *options)
    assert ended.code == code, ended.err
    return ended


def told(out):
    return json.loads((out / "zero_shot.json").read_text("utf-8"))


def by_rule(record):
    return filled(strict_schema(decided_schema(LABELS.values)), record.text)["label"]


# --- chat -------------------------------------------------------------------------------------------------------------


def test_a_chat_model_is_measured_like_any_system(server, calls, tmp_path):
    out = tmp_path / "rules"
    ended = zero_shot(server, calls, out)
    records = list(calls.split("test"))
    predictions = read_predictions(out / "predictions.jsonl")
    assert [(own.id, own.predicted_label) for own in predictions] == [(own.id, by_rule(own)) for own in records]
    assert all(present(own.rationale).startswith("It has") and own.probabilities is None for own in predictions)
    results = read_results(out)
    right = sum(by_rule(own) == own.label for own in records)
    assert 0 < right < 12 and results.metrics["accuracy"].value == pytest.approx(right / 12)
    assert results.system == "rules" and results.metrics["bleu"].value is not None
    assert "accuracy" in ended.out and {"report.html", "statistics.npz"} <= {path.name for path in out.iterdir()}
    assert told(out)["splits"]["test"] == {"records": 12, "unanswered": {}, "served_models": ["rules-2026"]}
    assert told(out)["prompt"] == "zero_shot/2" and server.counts()["total"] == 12
    # It is the folder that evaluating its predictions makes, and it can be compared.
    again = tmp_path / "again"
    assert r2d("evaluate", "--predictions", out / "predictions.jsonl", calls.path, "--out", again, *QUICK).code == 0
    assert read_results(again).metrics == results.metrics and read_results(again).signature == results.signature
    ended = r2d("compare", out, again, "--out", tmp_path / "comparison", *QUICK)
    assert ended.code == 0 and "no difference seen in Macro-F1" in ended.out, ended.err
    # Again: nothing is sent.
    zero_shot(server, calls, out, "--force")
    assert server.counts()["total"] == 12 and read_results(out).metrics == results.metrics


def test_what_is_not_answered_is_counted_and_never_dropped(server, calls, tmp_path):
    # One worker, so that the queue meets the calls in their order: an object that is none, also when asked again.
    server.faults(queue=[{"kind": "bad"}, {"kind": "bad"}, {"kind": "refusal"}, {"kind": "length"}])
    ended = zero_shot(server, calls, tmp_path / "out", "--concurrency", 1, code=1)
    predictions = read_predictions(tmp_path / "out" / "predictions.jsonl")
    assert [own.predicted_label for own in predictions[:3]] == ["", "", ""] and all(
        own.predicted_label for own in predictions[3:]
    )
    assert told(tmp_path / "out")["splits"]["test"]["unanswered"] == {"invalid_answer": 1, "refused": 1, "cut_off": 1}
    assert "3 of 12 records have no answer" in ended.err
    results = read_results(tmp_path / "out")
    right = sum(by_rule(own) == own.label for own in list(calls.split("test"))[3:])
    assert results.metrics["accuracy"].n == 12 and results.metrics["accuracy"].value == pytest.approx(right / 12)
    assert sum(results.unanswered) == 3


def test_examples_are_drawn_by_a_fixed_rule(calls):
    drawn = draw_examples(calls, 7, None)
    assert [own.label for own in drawn] == [*LABELS.values, *LABELS.values, LABELS.values[0]]
    assert len({own.id for own in drawn}) == 7 and draw_examples(calls, 4, None) == drawn[:4]
    assert {own.id for own in calls.split("train")} >= {own.id for own in drawn}
    assert draw_examples(calls, 7, None, seed=1) != drawn
    # Every third record has a nurse's note, all of one label.
    assert {own.label for own in draw_examples(calls, 8, "nurse")} == {LABELS.values[0]}
    with pytest.raises(
        Exception, match="9 examples were requested, but the training split has only 8 records with a rationale"
    ):
        draw_examples(calls, 9, "nurse")


def test_examples_are_shown_as_fenced_data(server, calls, tmp_path):
    with CallLog(tmp_path / "log.sqlite") as log:
        rival = make_rival(Client(Endpoint(server.base_url, "rules"), log), calls.path, None, few_shot=2)
    assert isinstance(rival, ChatRival) and rival.source == "nurse"  # the dataset's only one
    record = next(iter(calls.split("test")))
    [call] = rival.calls(record, LABELS)
    content = call.messages[-1]["content"]
    for example in draw_examples(calls, 2, "nurse"):
        shown = f"Text: {example.text}\nRationale: {example.rationales['nurse']}\nDecision: {example.label}"
        assert shown in content
    # What all calls share comes first, behind fences of its own, so that a server reads it once.
    other = list(calls.split("test"))[1]
    [different] = rival.calls(other, LABELS)
    pairs = zip(content, different.messages[-1]["content"], strict=False)
    shared = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    assert call.messages[0] == different.messages[0] and content[len(shared) :].count("<<<DATA") == 0
    assert shared.endswith("Text:\n<<<DATA ") and content.endswith(">>>") and record.text not in shared
    codes = re.findall(r"^<<<DATA (\w{32})$", content, re.MULTILINE)
    assert len(codes) == 3 and codes[0] == codes[1] != codes[2]
    zero_shot(server, calls, tmp_path / "out", "--few-shot", 2)
    assert told(tmp_path / "out")["example_ids"] == rival.example_ids


def test_choices_of_a_records_own(server, tmp_path):
    def change(own: Record) -> Record:
        return replace(own, choices=(present(own.label), f"other {own.id}"))

    data = write_calls(tmp_path / "data", change, LabelSet())
    zero_shot(server, data, tmp_path / "chat", "--few-shot", 3)
    zero_shot(server, data, tmp_path / "decisions", "--dialect", "decisions")
    for name in ("chat", "decisions"):
        for record, own in zip(
            data.split("test"), read_predictions(tmp_path / name / "predictions.jsonl"), strict=True
        ):
            assert own.predicted_label in present(record.choices)


# --- decision models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["systemone", "decisions"])
def test_probabilities_are_calibrated_by_validation_as_ours_are(server, calls, tmp_path, dialect):
    out = tmp_path / "out"
    ended = zero_shot(server, calls, out, "--dialect", dialect)
    assert server.counts()["total"] == 48  # 12 of each split in two orders
    raw = read_predictions(out / "raw_predictions.jsonl")
    for record, own in zip(calls.split("test"), raw, strict=True):
        assert own.probabilities == pytest.approx(probabilities(LABELS.values, record.text))
        likeliest = max(LABELS.values, key=present(own.probabilities).__getitem__)
        assert own.predicted_label == likeliest and own.rationale is None
    results = read_results(out)
    fitted = fit_calibration(read_predictions(out / "validation_predictions.jsonl"), calls)
    assert results.calibration is not None and results.calibration.temperature == pytest.approx(fitted.temperature)
    assert results.calibration.before["log_loss"] != pytest.approx(results.metrics["log_loss"].value)
    calibrated = read_predictions(out / "predictions.jsonl")
    assert [own.predicted_label for own in calibrated] == [own.predicted_label for own in raw]
    for own, before in zip(calibrated, raw, strict=True):
        powers = {label: p ** (1 / fitted.temperature) for label, p in present(before.probabilities).items()}
        assert own.probabilities == pytest.approx({name: p / sum(powers.values()) for name, p in powers.items()})
    flips = told(out)["splits"]["test"]
    assert flips["flip_rate"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 12} and "0.0000 (95 %" in ended.err


def test_two_orders_are_averaged_and_flips_reported(server, tmp_path):
    data = write_calls(tmp_path / "data", marked("the caller hesitates", every=2))
    zero_shot(server, data, tmp_path / "two", "--dialect", "decisions")
    assert told(tmp_path / "two")["splits"]["test"]["flip_rate"]["value"] == 0.5
    assert told(tmp_path / "two")["splits"]["validation"]["flip_rate"]["n"] == 12
    for record, own in zip(
        data.split("test"), read_predictions(tmp_path / "two" / "raw_predictions.jsonl"), strict=True
    ):
        one, other = (probabilities(order, record.text) for order in (LABELS.values, LABELS.values[::-1]))
        assert own.probabilities == pytest.approx({label: (one[label] + other[label]) / 2 for label in one})
    # One order only costs half and says nothing of flips; the first is that of the set.
    counted = server.counts()["total"]
    zero_shot(server, data, tmp_path / "one", "--dialect", "decisions", "--orders", 1)
    assert server.counts()["total"] == counted == 48 and "flip_rate" not in told(tmp_path / "one")["splits"]["test"]
    first = read_predictions(tmp_path / "one" / "raw_predictions.jsonl")[0]
    assert first.predicted_label == LABELS.values[0]  # it hesitates, and answers by the order


@pytest.mark.parametrize(("urgent", "upwards"), [("last", 1), ("first", -1), (None, 1)])
def test_ordinal_labels_are_asked_for_as_a_score(urgent, upwards):
    labels = LabelSet(LABELS.values, ordinal=True, urgent=urgent)
    one, other = DecisionRival().calls(Record("x", "note", "home care"), labels)
    question = one.questions["decision"]
    assert question.kind == "score" and list(question.options) == list(LABELS.values)[::upwards]
    assert list(other.questions["decision"].options) == list(question.options)[::-1]
    assert ("least urgent" in question.instructions) == (urgent is not None)
    assert "from the high" in other.questions["decision"].instructions or "from the most" in (
        other.questions["decision"].instructions
    )
    [one, _] = DecisionRival().calls(Record("x", "note", "home care"), LABELS)
    assert one.questions["decision"].kind == "choice" and "level" not in one.questions["decision"].instructions


def test_scores_are_read_by_level(server, tmp_path):
    data = write_calls(tmp_path / "data", labels=ORDINAL)
    zero_shot(server, data, tmp_path / "out", "--dialect", "systemone")
    flips = 0
    for record, own in zip(
        data.split("test"), read_predictions(tmp_path / "out" / "raw_predictions.jsonl"), strict=True
    ):
        levels = list(probabilities(["0", "1", "2"], record.text).values())  # this rule sees numbers of levels only
        expected = {label: (levels[i] + levels[2 - i]) / 2 for i, label in enumerate(LABELS.values)}
        assert own.probabilities == pytest.approx(expected)
        flips += max(range(3), key=levels.__getitem__) != 1
    assert 0 < flips < 12 and told(tmp_path / "out")["splits"]["test"]["flip_rate"]["value"] == flips / 12
    assert read_results(tmp_path / "out").metrics["quadratic_kappa"].value is not None


def test_what_a_decision_model_declines_is_unanswered(server, calls, tmp_path):
    # In order: both questions of the first record are declined, then one of two of the second.
    server.faults(queue=[{"kind": "refusal"}] * 3)
    ended = zero_shot(server, calls, tmp_path / "out", "--dialect", "decisions", "--concurrency", 1)
    raw = read_predictions(tmp_path / "out" / "raw_predictions.jsonl")
    assert raw[0].predicted_label == "" and raw[0].probabilities is None
    assert raw[1].probabilities == pytest.approx(probabilities(LABELS.values, list(calls.split("test"))[1].text))
    found = told(tmp_path / "out")["splits"]["test"]
    assert found["unanswered"] == {"refused": 1} and found["answered_in_one_order"] == 1
    assert found["flip_rate"]["n"] == 10 and "1 of 12 records have no answer" in ended.err
    results = read_results(tmp_path / "out")
    assert results.metrics["accuracy"].n == 12 and results.metrics["log_loss"].n == 11 and sum(results.unanswered) == 1


def test_without_validation_or_on_it_nothing_is_fitted(server, calls, tmp_path):
    zero_shot(server, calls, tmp_path / "out", "--dialect", "decisions", "--split", "validation")
    assert read_results(tmp_path / "out").calibration is None and server.counts()["total"] == 24
    assert not (tmp_path / "out" / "validation_predictions.jsonl").exists()


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dialect", "chats"), "expected chat, systemone or decisions"),
        (("--dialect", "decisions", "--few-shot", "2"), "needs --dialect chat"),
        (("--few-shot", "25", "--rationale-source", "nurse"), "25 examples were requested"),
        (("--rationale-source", "doctor"), "has no rationales of source 'doctor'"),
        (("--split", "dev"), "has no split 'dev'"),
        (("--max-calls", "5"), "with 7 calls left"),
        (("--model", "gpt"), "does not know this model"),
        (("--base-url", "http://10.0.0.1/v1"), "--allow-remote"),
    ],
)
def test_mistakes_end_with_one_line_and_no_results(server, calls, tmp_path, options, message):
    ended = r2d("zero-shot", calls.path, "--out", tmp_path / "out", *at(server), *QUICK, *options)
    assert ended.code == 2 and message in ended.err.replace("\n", " "), ended.err
    assert not (tmp_path / "out").exists() and "Traceback" not in ended.err


def test_a_dry_run_counts_every_order_and_split(server, calls, tmp_path):
    run = ("zero-shot", calls.path, "--out", tmp_path / "out", *at(server), "--dialect", "systemone", "--dry-run")
    ended = r2d(*run)
    assert ended.code == 0 and "to send: 48 calls" in ended.err and server.counts()["total"] == 0
    assert list(tmp_path.iterdir()) == []


def test_calls_carry_what_the_user_set():
    [call] = ChatRival(sampling={"max_tokens": 5}).calls(Record("x", "note", "home care"), LABELS)
    assert isinstance(call, Call) and call.settings == {"max_tokens": 5}
    assert call.schema is decided_schema(LABELS.values) and call.id == "x"
