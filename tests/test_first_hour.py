"""What a new user types in the first hour: dirty tables, options in any place, misspelt keys, and what to do next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forks import Ended, Forks
from toy import write_toy

from reason2decide.data.check import check_dataset
from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import ConfigError
from reason2decide.training.config_file import parse_config

HEADER = "text,label\n"


@pytest.fixture
def r2d(forks: Forks, tmp_path: Path) -> Any:
    def run(*arguments: object) -> Ended:
        return forks.run("data", "import", "table", *arguments, "--text", "text", "--label", "label")

    return run


def rows(count: int = 20) -> str:
    return "".join(f"note {i},{'yes' if i % 2 else 'no'}\n" for i in range(count))


# --- import -----------------------------------------------------------------------------------------------------------


def test_all_problems_of_an_import_are_told_at_once(r2d: Any, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(HEADER + rows() + ",yes\nnote 98,\na,b,c\n")
    done = r2d(tmp_path / "in.csv", "--out", tmp_path / "d")
    assert done.returncode == 2 and "3 rows cannot be used" in done.stderr and "--skip-bad" in done.stderr
    for problem in ("row 21 (line 22): the text is empty", "the label is empty", "3 cells, but the header has 2"):
        assert problem in done.stderr
    assert not (tmp_path / "d").exists()


def test_skipped_rows_are_counted_and_kept_in_a_file(r2d: Any, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(HEADER + rows() + ",yes\nnote 98,\na,b,c\n")
    done = r2d(tmp_path / "in.csv", "--out", tmp_path / "d", "--skip-bad")
    assert done.returncode == 0 and "3 rows were skipped" in done.stderr
    kept = [json.loads(line) for line in (tmp_path / "d" / "skipped.jsonl").read_text().splitlines()]
    assert len(kept) == 3 and {"label": "yes", "text": ""} in [bad.get("row") for bad in kept]
    DatasetFolder.open(tmp_path / "d").verify()
    assert f"next: r2d data check {tmp_path / 'd'}" in done.stderr


def test_nothing_left_is_no_dataset(r2d: Any, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(HEADER + ",yes\n,no\n")
    assert r2d(tmp_path / "in.csv", "--out", tmp_path / "d", "--skip-bad").returncode == 2


def test_cells_that_seem_to_say_nothing_are_counted_by_column(r2d: Any, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(HEADER + rows() + "#BOŞ!,yes\n#BOŞ!,no\n???,yes\n#N/A,no\nfever #3,no\n")
    done = r2d(tmp_path / "in.csv", "--out", tmp_path / "d")
    assert "4 cells of 'text' seem to say that there is nothing" in done.stderr and "'#BOŞ!' (2)" in done.stderr
    assert "fever #3" not in done.stderr
    told = r2d(tmp_path / "in.csv", "--out", tmp_path / "e", "--missing", "#BOŞ!,???,#N/A", "--skip-bad")
    assert "4 rows were skipped" in told.stderr and "seem to say" not in told.stderr


def test_a_given_split_without_test_is_completed(r2d: Any, tmp_path: Path) -> None:
    content = "".join(f"note {i},{'yes' if i % 2 else 'no'},{'train' if i < 60 else 'dev'}\n" for i in range(80))
    (tmp_path / "in.csv").write_text("text,label,part\n" + content)
    done = r2d(tmp_path / "in.csv", "--out", tmp_path / "d", "--split-column", "part")
    assert "the split column has no test records: a tenth of train became test" in done.stderr
    made = DatasetFolder.open(tmp_path / "d")
    assert {split: len(made.split(split)) for split in made.hashes} == {"train": 54, "validation": 20, "test": 6}


def test_a_label_may_be_the_mark_of_a_choice(r2d: Any, tmp_path: Path) -> None:
    """As in CasiMedicos: "CORRECT ANSWER: 2", and in tables of exam questions with their options as an object."""
    content = [{"text": f"Case {i}?\n1- Cold {i}\n2.- Flu", "label": str(1 + i % 2)} for i in range(20)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, content)))
    assert r2d(tmp_path / "in.jsonl", "--out", tmp_path / "d", "--choices-in-text").returncode == 0
    made = {own.text: own for split in ("train", "test") for own in DatasetFolder.open(tmp_path / "d").split(split)}
    assert made["Case 3?"].label == "Flu" and made["Case 3?"].choices == ("Cold 3", "Flu")
    options = [
        {"text": f"Case {i}?", "o": {"A": "Cold", "B": f"Flu {i}", "C": None}, "label": "ab"[i % 2]} for i in range(20)
    ]
    (tmp_path / "o.jsonl").write_text("\n".join(map(json.dumps, options)))
    assert r2d(tmp_path / "o.jsonl", "--out", tmp_path / "e", "--choices", "o").returncode == 0
    own = next(own for own in DatasetFolder.open(tmp_path / "e").split("train") if own.label != "Cold")
    assert own.choices == ("Cold", own.label) and str(own.label).startswith("Flu ")


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "meant"), [("lr", "learning_rate"), ("model_name_or_path", "base"), ("stepz", "steps"), ("epochs", "steps")]
)
def test_what_other_trainers_call_a_key_is_known(key: str, meant: str) -> None:
    content = {"method": "sft", "base": "tiny", "dataset": "d", "steps": 1, key: 1}
    with pytest.raises(ConfigError, match=f"{key}.*did you mean '{meant}'"):
        parse_config(content, "test")


def test_all_mistakes_of_a_configuration_are_told_at_once(forks: Forks, tmp_path: Path) -> None:
    write_toy(tmp_path / "data")
    (tmp_path / "train.toml").write_text('method = "r2d"\nbase = "tiny"\ndataset = "data"\nlr = 1\nsteps = 0\n')
    done = forks.run("train", tmp_path / "train.toml", "--set", "rationale_source=nurse")
    for problem in ("did you mean 'learning_rate'", "steps = 0", "no rationales of source 'nurse'; its sources: llm"):
        assert problem in done.stderr
    missing = forks.run("train", tmp_path / "train.toml", "--set", f"dataset={tmp_path / 'none'}")
    assert missing.returncode == 2 and "none is not a folder" in missing.stderr and "steps = 0" in missing.stderr


def test_quiet_stands_anywhere(forks: Forks, tmp_path: Path) -> None:
    calls = ("data", "synthesize", "--train", "8", "--validation", "4", "--test", "4", "--out")
    for place, words in enumerate(((*calls, tmp_path / "0", "--quiet"), ("-q", *calls, tmp_path / "1"))):
        done = forks.run(*words)
        assert done.returncode == 0 and done.stderr == "" and (tmp_path / str(place)).exists()
    assert "wrote" in forks.run(*calls, tmp_path / "2").stderr


def test_completion_can_be_installed(forks: Forks) -> None:
    assert "--install-completion" in forks.run("--help").stdout


def test_training_says_what_comes_next(forks: Forks, tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "data")
    (tmp_path / "train.toml").write_text('method = "sft"\nbase = "tiny"\ndataset = "data"\nsteps = 2\n')
    done = forks.run("train", tmp_path / "train.toml", "--out", tmp_path / "run")
    command = f"r2d evaluate {tmp_path / 'run' / 'bundle'} {toy.path} --out {tmp_path / 'run' / 'results'}"
    assert f"next: {command}" in " ".join(done.stderr.split())
    # A misspelt column fails before anything is decided, and leaves nothing.
    arguments = command.split()[1:]
    refused = forks.run(*arguments, "--slice", "sexx")
    assert refused.returncode == 2 and "no record has a column 'sexx'" in refused.stderr
    assert "deciding" not in refused.stderr and not (tmp_path / "run" / "results").exists()


def test_labels_too_long_for_training_are_found(tmp_path: Path) -> None:
    labels = LabelSet(("no", "yes " * 60 + "!"))
    splits = {s: [Record(f"{s}{i}", f"t{s}{i}", labels.values[i]) for i in range(2)] for s in ("train", "validation")}
    data = write_dataset(tmp_path / "d", DatasetInfo("q", "t", labels), splits)
    found = check_dataset(data.path, label_limit=50).warnings
    assert any("the longest label has 62 tokens with its end" in warning for warning in found)
    assert not any("longest label" in warning for warning in check_dataset(data.path, label_limit=62).warnings)
