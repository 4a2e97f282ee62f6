"""Defaults that learn, by the kind of base, and a training that does not learn says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from forks import Forks
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from toy import write_toy

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.training.base_defaults import KINDS, completed
from reason2decide.training.config_file import parse_config
from reason2decide.training.learnt import complaints, majority_level


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    return write_toy(tmp_path_factory.mktemp("learnt") / "data")


def five_keys(**changes: Any) -> dict[str, Any]:
    return {"method": "r2d", "base": "tiny", "dataset": "data", "rationale_source": "llm", "steps": 4, **changes}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({}, "tiny"), ({"base": "google/flan-t5-base"}, "pre-trained"), ({"lora": {"rank": 4}}, "with lora")],
)
def test_what_is_left_out_is_set_by_the_base(changes: dict[str, Any], kind: str) -> None:
    config, (wanted, _) = parse_config(five_keys(**changes), "test"), KINDS[kind]
    for stage in ("stage1", "stage2"):
        for key in ("learning_rate", "learning_rate_warmup", "batch_size"):
            assert config.of(key, stage) == getattr(wanted, key)
    assert config.dropout == wanted.dropout
    assert parse_config(config.model_dump(mode="json", exclude_none=True), "again") == config


def test_what_is_given_wins_and_a_table_is_completed() -> None:
    config = parse_config(five_keys(learning_rate={"stage1": 0.5}, batch_size=3, dropout=0.2), "test")
    assert [config.of("learning_rate", stage) for stage in ("stage1", "stage2")] == [0.5, 1e-3]
    assert config.of("batch_size", "stage2") == 3 and config.dropout == 0.2


@given(st.dictionaries(st.sampled_from(["learning_rate", "batch_size", "base", "x"]), st.integers() | st.none()))
def test_completing_twice_changes_nothing(content: dict[str, Any]) -> None:
    assert completed(completed(content)) == completed(content)


def test_every_default_is_told_with_its_source(forks: Forks) -> None:
    told = forks.run("train", "--explain").stdout
    for _, source in KINDS.values():
        assert source in told


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
def test_the_majority_level_is_that_of_scikit_learn(gold: list[str]) -> None:
    """Also of labels that are declared and gold nowhere."""
    counts = {label: gold.count(label) for label in set(gold)}
    most = max(counts, key=counts.__getitem__)
    labels = ["a", "b", "c"]
    assert majority_level(counts, "accuracy", 3) == pytest.approx(accuracy_score(gold, [most] * len(gold)))
    expected = f1_score(gold, [most] * len(gold), labels=labels, average="macro", zero_division=0)
    assert majority_level(counts, "macro_f1", 3) == pytest.approx(expected)


def rows(stage: str, losses: list[float], name: str = "label_loss", **validation: float) -> list[dict[str, Any]]:
    steps = [{"stage": stage, "event": "train", "step": i, name: loss} for i, loss in enumerate(losses)]
    return [*steps, {"stage": stage, "event": "validation", "step": len(losses), **validation}]


GOLD = ["a"] * 3 + ["b"]


def test_what_a_flat_loss_and_the_majority_look_like() -> None:
    flat = rows("sft", [1.0] * 100, macro_f1=0.4286, accuracy=0.75)
    assert complaints("sft", flat, GOLD, 2) == [
        "the label loss did not fall: 1.000 at first, 1.000 at last",
        "validation macro-F1 is at most 0.429; always deciding one label gives 0.429",
    ]
    assert complaints("sft", rows("sft", [1 - i / 200 for i in range(100)], macro_f1=0.6), GOLD, 2) == []
    assert complaints("sft", rows("sft", [1.0] * 49, macro_f1=0.6), GOLD, 2) == []  # too few steps to tell


def test_what_an_earlier_stage_has_lowered_may_stay() -> None:
    first = rows("stage1", [2 - i / 100 for i in range(100)], "rationale_loss")
    second = rows("stage2", [1.0] * 100, "rationale_loss", macro_f1=0.9)
    assert complaints("stage2", first + second, GOLD, 2) == []
    assert complaints("stage1", rows("stage1", [2.0] * 100, "rationale_loss"), GOLD, 2) != []


def test_a_training_that_does_not_learn_says_so(toy: DatasetFolder, tmp_path: Path, forks: Forks) -> None:
    config = tmp_path / "train.toml"
    config.write_text(f'method = "sft"\nbase = "tiny"\ndataset = "{toy.path}"\nsteps = 3\n')
    done = forks.run("train", config, "--out", tmp_path / "run", "--set", "learning_rate=1e-9")
    assert done.returncode == 0
    assert "sft has learnt little: validation macro-F1 is at most" in done.stderr
    assert "Try a higher learning_rate (now 1e-09), more steps (now 3)" in done.stderr
