"""Each command with a real, small language model behind a real server: what must hold however badly it writes."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import llama_server
import pytest
from llm_toy import Ended, r2d

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.predictions import NO_ANSWER, read_predictions
from reason2decide.data.records import Record
from reason2decide.evaluation.results import read_results
from reason2decide.llm.client.log import CallLog
from reason2decide.llm.teach.gates import GatedCase, failed_gates

RECORDS = 4
WORDS = 30
FENCE = re.compile(r"\b[0-9a-f]{32}\b")


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[str, ...]]:
    """The options that name the model; drawn answers, since it repeats itself at temperature 0."""
    with llama_server.running() as base_url:
        drawn = ("--set", "temperature=0.8", "--set", "seed=1", "--max-tokens", "120")
        yield ("--base-url", base_url, "--model", llama_server.MODEL, *drawn)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    out = tmp_path_factory.mktemp("real") / "calls"
    counts = ("--train", 20, "--validation", 2, "--test", RECORDS)
    assert r2d("data", "synthesize", "--out", out, *counts, "--seed", 2).code == 0
    return DatasetFolder.open(out)


def sent(ended: Ended) -> int:
    found = re.search(r"spent: (\d+) requests", ended.err)
    assert found is not None, ended.err
    return int(found[1])


def answers(calls: DatasetFolder) -> list[str]:
    """All that the model has answered about the dataset so far."""
    with CallLog(calls.path / "calls.sqlite") as log:
        return [row[0] for row in log._reader.execute("SELECT text FROM answers")]


def written(ended: Ended, out: Path, source: str, asked: int) -> list[Record]:
    """The records with a rationale of a new source, after a look at the accounts; none where none passed the gates."""
    assert "the server refuses" not in ended.err and "Traceback" not in ended.err
    if ended.code == 2:
        assert "could be written" in ended.err and not out.exists()
        return []
    told = tomllib.loads((out / "dataset.toml").read_text("utf-8"))["provenance"]["rationales"][source]
    failed, dropped = (sum(told[name].values()) for name in ("failed_calls", "not_written"))
    assert told["written"] + failed + dropped == asked and ended.code == (failed > 0), ended.err
    assert told["served_models"] == [llama_server.MODEL]
    return [own for own in DatasetFolder.open(out).split("test") if source in own.rationales]


def test_rationalize(model: tuple[str, ...], calls: DatasetFolder, tmp_path: Path) -> None:
    run = ("rationalize", calls.path, "--source", "t", "--split", "test", "--max-words", WORDS, *model)
    ended = r2d(*run, "--out", tmp_path / "taught")
    for own in written(ended, tmp_path / "taught", "t", RECORDS):
        case = GatedCase(own.text, own.label or "", calls.info.labels.values, max_words=WORDS)
        assert failed_gates(own.rationales["t"], case) == []
    assert RECORDS <= sent(ended) <= 2 * RECORDS  # each once, and once more where it was no object
    # A form that the server enforces: every answer is an object with one text, and quotes no fence.
    assert all(set(json.loads(text)) == {"rationale"} and not FENCE.search(text) for text in answers(calls))
    # The same command again, with more room for answers and another output, pays for what failed only.
    again = r2d(*run, "--out", tmp_path / "again", "--max-tokens", 200)
    assert sent(again) <= 2 * (RECORDS - len(answers(calls))) + RECORDS // 2, again.err


def test_refine(model: tuple[str, ...], calls: DatasetFolder, tmp_path: Path) -> None:
    noted = sum("nurse" in own.rationales for own in calls.split("test"))
    assert noted >= 2
    run = ("refine", calls.path, "--to", "plain", "--split", "test", "--max-words", WORDS, *model)
    ended = r2d(*run, "--out", tmp_path / "refined")
    written(ended, tmp_path / "refined", "plain", noted)
    assert noted <= sent(ended) <= 2 * noted


def test_zero_shot_and_judge(model: tuple[str, ...], calls: DatasetFolder, tmp_path: Path) -> None:
    out = tmp_path / "rival"
    few = ("--few-shot", 1, "--rationale-source", "llm", "--max-words", WORDS, "--resamples", 50)
    ended = r2d("zero-shot", calls.path, "--out", out, *few, *model)
    predictions = read_predictions(out / "predictions.jsonl")
    unanswered = sum(own.predicted_label == NO_ANSWER for own in predictions)
    assert len(predictions) == RECORDS > unanswered and ended.code == (unanswered > 0), ended.err
    assert {own.predicted_label for own in predictions} <= {*calls.info.labels.values, NO_ANSWER}
    assert sum(read_results(out).unanswered) == unanswered
    # The judge's scores are expected levels, from the log-probabilities that llama.cpp gives.
    judge = ("--dataset", calls.path, "--criteria", "readable", "--rationale-source", "llm", "--resamples", 50)
    ended = r2d("judge", out / "predictions.jsonl", "--out", tmp_path / "judged", *judge, *model)
    assert ended.code in (0, 1) and "gave no log-probabilities" not in ended.err, ended.err
    rows = [json.loads(line) for line in (tmp_path / "judged" / "judgements.jsonl").read_text("utf-8").splitlines()]
    scored = [row["expected"] for row in rows if row["judge"] and row["expected"] is not None]
    assert scored and all(1 <= value <= 5 for value in scored) and any(value != round(value) for value in scored)


def test_a_greedy_model_that_loops_is_stopped(model: tuple[str, ...], calls: DatasetFolder, tmp_path: Path) -> None:
    """At temperature 0 it repeats itself in a third of its answers: they end long before their tokens do."""
    greedy = (*model[:4], "--max-tokens", 1000)
    run = ("rationalize", calls.path, "--source", "g", "--split", "test", "--max-words", 120, *greedy)
    ended = r2d(*run, "--out", tmp_path / "greedy")
    with CallLog(calls.path / "calls.sqlite") as log:
        rows = [row for row in log.failures() if row["max_tokens"] == 1000]
    assert all(row["kind"] == "looped" and len(row["text"]) < 2200 for row in rows), [row["kind"] for row in rows]
    again = r2d(*run, "--out", tmp_path / "greedy", "--force")
    assert sent(again) == 0 and again.code == ended.code
