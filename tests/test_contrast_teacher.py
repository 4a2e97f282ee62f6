"""Contrasts written by a language model on a real server, for labels taken from out-of-fold predictions."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from llm_server import BAD_RATIONALES, LlmServer
from llm_toy import LABELS, at, marked, r2d, write_calls
from toy import settings, write_toy

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.predictions import Prediction, read_predictions, write_predictions
from reason2decide.data.records import Record
from reason2decide.errors import ConfigError, DataError
from reason2decide.llm.teach.contrast import Advocate, argued_labels
from reason2decide.training.config_file import parse_config
from reason2decide.workflows.out_of_fold import fold_of, predict_out_of_fold

A, B, C = LABELS.values
RECORD = Record("r", "a text", A, {"nurse": "why"})


# ---- Which labels are argued for


def test_labels_by_hand() -> None:
    sure = Prediction("r", A, {A: 0.6, B: 0.1, C: 0.3})
    wrong = Prediction("r", C, {A: 0.2, B: 0.3, C: 0.5})
    assert argued_labels(RECORD, LABELS, "all", None) == (B, C)
    assert argued_labels(RECORD, LABELS, "second", sure) == (C,)  # the runner-up
    assert argued_labels(RECORD, LABELS, "predicted", sure) == ()
    assert argued_labels(RECORD, LABELS, "second", wrong) == argued_labels(RECORD, LABELS, "predicted", wrong) == (C,)
    assert argued_labels(RECORD, LABELS, "second", None) == ()
    assert argued_labels(RECORD, LABELS, "predicted", Prediction("r", "")) == ()  # no answer
    own = replace(RECORD, choices=(A, "elsewhere"))
    assert argued_labels(own, LABELS, "all", None) == ("elsewhere",)


@given(st.sampled_from(LABELS.values), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_the_gold_label_is_never_argued_for(gold: str, weights: list[float]) -> None:
    record = replace(RECORD, label=gold)
    probabilities = dict(zip(LABELS.values, weights, strict=True))
    prediction = Prediction("r", max(probabilities, key=probabilities.__getitem__), probabilities)
    for kind in ("second", "predicted", "all"):
        assert gold not in argued_labels(record, LABELS, kind, prediction)


def test_predictions_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="'hospital', is not one of its labels"):
        argued_labels(RECORD, LABELS, "predicted", Prediction("r", "hospital"))
    with pytest.raises(DataError, match="has no probabilities; use --for-labels predicted or all"):
        argued_labels(RECORD, LABELS, "second", Prediction("r", A))
    with pytest.raises(ConfigError, match="--for-labels second needs --predictions FILE"):
        Advocate("nurse", "second")
    with pytest.raises(ConfigError, match="all takes no --predictions"):
        Advocate("nurse", "all", {})
    with pytest.raises(ConfigError, match="'third': expected one of second, predicted, all"):
        Advocate("nurse", "third")  # type: ignore[arg-type]


# ---- The command, against a real server


def argue(server: LlmServer, data: Path, out: Path, *more: str, code: int = 0) -> Any:
    ended = r2d("rationalize", str(data), "--out", str(out), "--source", "nurse", *at(server), *more)
    assert ended.code == code, ended.err
    return ended


def test_contrasts_stand_beside_the_rationales_with_their_provenance(server: LlmServer, tmp_path: Path) -> None:
    before = write_calls(tmp_path / "d")
    argue(server, before.path, tmp_path / "out", "--for-labels", "all", "--split", "train")
    after = DatasetFolder.open(tmp_path / "out")
    for old, new in zip(before.split("train"), after.split("train"), strict=True):
        assert new.rationales == old.rationales and new.label == old.label
        assert set(new.contrasts["nurse"]) == set(LABELS.values) - {old.label}
        assert set(new.meta["contrast_provenance"]["nurse"]) == set(new.contrasts["nurse"])
        assert all("speaks against it" in text for text in new.contrasts["nurse"].values())
    assert [own.contrasts for own in after.split("test")] == [{}] * 12
    entry = tomllib.loads((tmp_path / "out" / "dataset.toml").read_text())["provenance"]["contrasts"]["nurse"]
    assert entry["for_labels"] == "all" and entry["written"] == 48 and entry["unsupported"] == {}
    # What is there is not asked for again.
    ended = argue(server, tmp_path / "out", tmp_path / "again", "--for-labels", "all", "--split", "train", code=2)
    assert "no calls were made" in ended.err


def test_only_what_a_model_confuses_is_paid_for(server: LlmServer, tmp_path: Path) -> None:
    data = write_calls(tmp_path / "d")
    records = list(data.split("train"))
    wrong = {own.id: LABELS.values[(LABELS.values.index(str(own.label)) + 1) % 3] for own in records[:5]}
    file = tmp_path / "p.jsonl"
    write_predictions(file, [Prediction(own.id, wrong.get(own.id, str(own.label))) for own in records])
    argue(server, data.path, tmp_path / "out", "--for-labels", "predicted", "--predictions", str(file))
    found = {
        own.id: list(own.contrasts.get("nurse", {})) for own in DatasetFolder.open(tmp_path / "out").split("train")
    }
    assert found == {own.id: [wrong[own.id]] if own.id in wrong else [] for own in records}


def test_what_nothing_supports_is_kept_apart_and_counted(server: LlmServer, tmp_path: Path) -> None:
    data = write_calls(tmp_path / "d", marked("unsupported", 4), counts=(8, 4, 4))
    for kept in (False, True):
        more = ["--keep-unsupported"] if kept else []
        argue(server, data.path, tmp_path / f"{kept}", "--for-labels", "all", *more)
        for own in DatasetFolder.open(tmp_path / f"{kept}").split("train"):
            unsupported = "unsupported" in own.text
            assert bool(own.contrasts) == (kept or not unsupported)
            assert ("unsupported_contrasts" in own.meta) == unsupported
        entry = tomllib.loads((tmp_path / f"{kept}" / "dataset.toml").read_text())["provenance"]["contrasts"]["nurse"]
        assert sum(entry["unsupported"].values()) == 8
    failures = [json.loads(line) for line in (tmp_path / "False" / "rationale_failures.jsonl").read_text().splitlines()]
    assert Counter(row["gate"] for row in failures) == {"nothing_supports_it": 8}
    assert all(row["label"] in LABELS.values for row in failures)


@pytest.mark.parametrize("gate", [*BAD_RATIONALES, "argues_for_another"])
def test_what_fails_a_gate_or_argues_for_another_label_is_listed(gate: str, server: LlmServer, tmp_path: Path) -> None:
    words = "contrarian, the caller says home care" if gate == "argues_for_another" else f"teacher {gate}"
    data = write_calls(tmp_path / "d", marked(words, 2), counts=(6, 2, 2))
    argue(server, data.path, tmp_path / "out", "--for-labels", "all", "--split", "train")
    failures = [json.loads(line) for line in (tmp_path / "out" / "rationale_failures.jsonl").read_text().splitlines()]
    assert failures and all(row["gate"] == gate and int(row["id"][1:]) % 2 == 0 for row in failures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--for-labels", "all", "--source", "llm"], "no rationales of source 'llm'"),
        (["--for-labels", "second"], "needs --predictions FILE"),
        (["--for-labels", "worst"], "expected one of second, predicted, all"),
        (["--predictions", "p.jsonl"], "--predictions and --keep-unsupported need --for-labels"),
        (["--for-labels", "all", "--without-label"], "--without-label withholds it; give one"),
        (["--for-labels", "second", "--predictions", "nowhere.jsonl"], "nowhere.jsonl is not a file"),
    ],
)
def test_mistakes_are_told(arguments: list[str], message: str, server: LlmServer, tmp_path: Path) -> None:
    data = write_calls(tmp_path / "d", counts=(4, 2, 2))
    ended = argue(server, data.path, tmp_path / "out", *arguments, code=2)
    assert message in " ".join(ended.err.split()) and not (tmp_path / "out").exists()


# ---- Out-of-fold predictions


@given(st.text(min_size=1), st.text(min_size=1), st.integers(2, 9))
def test_a_group_is_in_one_fold(one: str, other: str, folds: int) -> None:
    first, second = (Record(id, "text", A, group="patient") for id in (one, other))
    assert 0 <= fold_of(first, folds) == fold_of(second, folds) < folds
    assert fold_of(Record(one, "text", A), folds) == fold_of(Record(one, "another", B), folds)


def test_every_record_is_predicted_by_a_model_that_has_not_seen_it(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "d")
    config = tmp_path / "train.toml"
    config.write_text(tomli_w.dumps(settings(data, method="sft", steps=3)))
    ended = r2d("out-of-fold", str(config), "--out", str(tmp_path / "folds"), "--folds", "3")
    assert ended.code == 0 and ended.out.strip() == str(tmp_path / "folds" / "predictions.jsonl")
    train = {own.id for own in data.split("train")}
    assert sorted(own.id for own in read_predictions(tmp_path / "folds" / "predictions.jsonl")) == sorted(train)
    for fold in range(3):
        part = tmp_path / "folds" / f"fold-{fold}"
        learnt = {own.id for own in DatasetFolder.open(part / "dataset").split("train")}
        predicted = {own.id for own in read_predictions(part / "predictions.jsonl")}
        assert not learnt & predicted and learnt | predicted == train
    # A fold that was interrupted is done again, the others are not.
    changed = {path: path.stat().st_mtime_ns for path in (tmp_path / "folds").glob("fold-*/run/bundle/manifest.json")}
    (tmp_path / "folds" / "fold-1" / "predictions.jsonl").unlink()
    again = r2d("out-of-fold", str(config), "--out", str(tmp_path / "folds"), "--folds", "3")
    assert again.code == 0 and len(changed) == 3
    assert {path: path.stat().st_mtime_ns for path in changed} == changed
    # What was refused before a fold began may be corrected.
    for wrong in (("--folds", "40"), ("--folds", "3", "--set", "base=nobody/nothing")):
        assert r2d("out-of-fold", str(config), "--out", str(tmp_path / "again"), *wrong).code == 2
    # Folds of another configuration, other data or another number are not taken for these.
    for more, said in ((("--folds", "2"), "folds"), (("--folds", "3", "--set", "seed=7"), "seed")):
        refused = r2d("out-of-fold", str(config), "--out", str(tmp_path / "folds"), *more)
        assert refused.code == 2 and f"differ from these in {said}" in refused.err.replace("\n", " ")


def test_too_many_folds(tmp_path: Path) -> None:
    config = parse_config(settings(write_toy(tmp_path / "d"), method="sft", steps=1), "test")
    with pytest.raises(ConfigError, match="there are 1 folds; expected at least 2"):
        predict_out_of_fold(config, tmp_path / "out", 1)
    with pytest.raises(DataError, match="of 500 has none of the training records; use fewer folds"):
        predict_out_of_fold(config, tmp_path / "out", 500)
