"""The program as a user runs it: real processes, exit codes, what is printed and what is left on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Ended, Forks
from toy import run as train_toy
from toy import settings

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.version import __version__

SERVER: list[Forks] = []
R2D = [sys.executable, "-c", "from reason2decide.cli import main; main()"]


@pytest.fixture(scope="module", autouse=True)
def _server(forks: Forks) -> Iterator[None]:
    SERVER.append(forks)
    yield
    SERVER.clear()


def r2d(*arguments: object, stdin: str | None = None) -> Ended:
    return SERVER[0].run(*arguments, stdin=stdin)


def refused(*arguments: object) -> str:
    """What the program says of a user's mistake: one error on standard error, exit code 2, no traceback."""
    done = r2d(*arguments)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr and "error" in done.stderr.lower()
    return done.stderr


@pytest.fixture(scope="module")
def bundle(dataset: DatasetFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_toy(dataset, tmp_path_factory.mktemp("cli") / "run")


def toml(dataset: DatasetFolder, folder: Path, **changes: object) -> Path:
    import tomli_w

    file = folder / "train.toml"
    file.write_text(tomli_w.dumps(settings(dataset, **changes)))
    return file


def test_help_is_quick_and_needs_no_torch() -> None:
    started = time.monotonic()
    run_help = "from reason2decide.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code = f"import sys; sys.argv = ['r2d', '--help']\n{run_help}"
    heavy = "assert not {'torch', 'transformers', 'numpy', 'sacrebleu', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("train", "predict", "evaluate", "demo", "data"))
    assert time.monotonic() - started < 20  # a hang, not a speed: the half second is measured in benchmarks/startup.py


def test_version_and_unknown_command() -> None:
    assert r2d("--version").stdout.strip() == f"r2d {__version__}"
    assert r2d("trian").returncode == 2


def test_explain_lists_every_key() -> None:
    done = r2d("train", "--explain")
    assert done.returncode == 0 and "sampling_cap" in done.stdout and "(paper: 0.9 in stage2)" in done.stdout


def test_train_evaluate_predict(dataset: DatasetFolder, tmp_path: Path) -> None:
    """The whole road through the program: a bundle, its results and report, a decision on a new case."""
    config = toml(dataset, tmp_path, steps=2)
    assert r2d("--quiet", "train", config, "--out", tmp_path / "run", "--set", "seed=3").returncode == 0
    trained = tmp_path / "run" / "bundle"
    done = r2d("evaluate", trained, dataset.path, "--out", tmp_path / "results", "--resamples", 50)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    for name in ("accuracy", "macro_f1", "bleu", "chrf"):
        assert set(results["metrics"][name]) >= {"value", "low", "high", "n"}
        assert name in done.stdout
    assert set(results) >= {"metrics", "per_label", "confusion", "signature"}
    lines = (tmp_path / "results" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [record.id for record in dataset.split("test")]
    assert "<html" in (tmp_path / "results" / "report.html").read_text()[:200].lower()

    out = tmp_path / "decided.jsonl"
    assert r2d("predict", trained, dataset.path / "test.jsonl", "--out", out).returncode == 0
    # The same model on the same cases: predict and evaluate agree.
    assert out.read_text().splitlines() == lines


def test_predict_reports_bad_lines_and_goes_on(bundle: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    cases.write_text(
        '{"id": "a", "text": "chest pain"}\n'
        "not json\n"
        '{"id": "b", "text": "   "}\n'
        "\n"
        '{"text": "mild rash"}\n'
        '{"id": "c", "txt": "high fever"}\n'
        '{"id": 7, "text": "high fever", "age": 3}\n'
        '{"id": "a", "text": "high fever"}\n'
        '{"id": "d", "text": "high fever", "choices": ["yes", "yes "]}\n'
    )
    done = r2d("predict", bundle, cases, "--out", tmp_path / "out.jsonl")
    assert done.returncode == 0
    assert all(f"line {number}" in done.stderr for number in (2, 3, 6, 8))
    assert (
        "5 bad rows" in done.stderr
        and "8 rows read, 3 decided, 5 skipped" in done.stderr
        and "record 'd'" in done.stderr
    )
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [prediction["id"] for prediction in found] == ["a", "5", "7"]
    read = {"deferred", "prediction_set", "tokens", "tokens_read", "reason_support", "reason_supports"}
    assert set(found[0]) == {"id", "predicted_label", "probabilities", "rationale"} | read

    strict = r2d("predict", bundle, cases, "--out", tmp_path / "strict.jsonl", "--strict")
    assert strict.returncode == 2 and "line 2" in strict.stderr
    assert [item.name for item in sorted(tmp_path.iterdir())] == ["cases.jsonl", "out.jsonl"]


def test_predict_from_csv_and_standard_input(bundle: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.csv"
    cases.write_bytes("id,note,other\nx,Fieber für 3 Tage,1\ny,mild rash,2\n".encode("cp1252"))
    done = r2d("--quiet", "predict", bundle, cases, "--text", "note", "--encoding", "cp1252")
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["x", "y"]
    assert "has no column 'text'; it has 'id', 'note', 'other'" in refused(
        "predict", bundle, cases, "--encoding", "cp1252"
    )
    assert "0xfc (invalid start byte); give its encoding" in refused("predict", bundle, cases, "--text", "note")
    assert "unknown encoding 'klingon'" in refused("predict", bundle, cases, "--encoding", "klingon")

    piped = r2d("--quiet", "predict", bundle, "-", stdin='{"text": "chest pain"}\n{"text": "mild rash"}\n')
    assert [json.loads(line)["id"] for line in piped.stdout.splitlines()] == ["1", "2"]


def test_mistakes_of_each_command(bundle: Path, dataset: DatasetFolder, tmp_path: Path) -> None:
    config = toml(dataset, tmp_path)
    assert "did you mean 'learning_rate'?" in refused(
        "train", config, "--out", tmp_path / "r", "--set", "learing_rate=1"
    )
    assert "expected KEY=VALUE" in refused("train", config, "--set", "steps")
    assert "not a file" in refused("train", tmp_path / "none.toml")
    assert "no configuration given" in refused("train")
    assert "not a folder" in refused("evaluate", tmp_path / "none", dataset.path, "--out", tmp_path / "e")
    assert "has no split 'dev'" in refused("evaluate", bundle, dataset.path, "--split", "dev", "--out", tmp_path / "e")
    assert "has no rationales of source" in refused(
        "evaluate", bundle, dataset.path, "--out", tmp_path / "e", "--rationale-source", "nurse"
    )
    assert "already exists" in refused("evaluate", bundle, dataset.path, "--out", tmp_path)
    assert "not written by this command" in refused("evaluate", bundle, dataset.path, "--out", tmp_path, "--force")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert "no case" in refused("predict", bundle, empty)
    assert "already exists" in refused("predict", bundle, config, "--out", empty)
    assert "there is no file" in refused("predict", bundle, tmp_path / "none.jsonl")
    assert "File name too long: 29 yo" in refused("predict", bundle, "29 yo with chest pain " * 20)
    assert "is a file; give the path of a folder" in refused("compare", dataset.path, dataset.path, "--out", empty)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["empty.jsonl", "train.toml"]


def test_offline_hub_name_fails_in_seconds(dataset: DatasetFolder, tmp_path: Path) -> None:
    """With nothing listening where the hub should be, the answer comes within seconds and names what to do."""
    config = toml(dataset, tmp_path, base="google/flan-t5-small")
    started = time.monotonic()
    done = subprocess.run(
        [*R2D, "train", str(config), "--out", str(tmp_path / "r")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")},
    )
    assert done.returncode == 2 and "neither a folder here nor reachable" in done.stderr
    assert time.monotonic() - started < 60 and not (tmp_path / "r").exists()


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_json_on_standard_output_is_json_in_any_encoding(bundle: Path, tmp_path: Path, encoding: str) -> None:
    case = '{"id": "\\ud83d\\ude00 \\u2191", "text": "chest pain"}\n'
    command = [sys.executable, "-m", "reason2decide", "--quiet", "predict", str(bundle), "-"]
    done = subprocess.run(
        command, input=case.encode(), capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode(encoding))["id"] == "\U0001f600 \u2191"


@pytest.mark.parametrize("extra", ["train", "report"])
def test_a_missing_extra_is_named_with_its_install(
    extra: str, tmp_path: Path, bundle: Path, dataset: DatasetFolder
) -> None:
    """A process in which the extra's module cannot be found, as on a base install."""
    module = {"train": "torch", "report": "matplotlib"}[extra]
    code = f"import sys; sys.modules['{module}'] = None; from reason2decide.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", str(bundle), str(dataset.path), "--out", str(tmp_path / "e")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f'pip install "reason2decide[{extra}]"' in done.stderr


def test_a_full_disk_says_so(bundle: Path, tmp_path: Path) -> None:
    """/dev/full answers every write with "no space left": the program names it and exits with 2."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full to write to")
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"text": "chest pain"}\n')
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*R2D, "predict", str(bundle), str(cases)], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 2 and "disk is full" in done.stderr and "Traceback" not in done.stderr


def test_force_replaces_a_run_only_when_nothing_is_left_to_refuse(dataset: DatasetFolder, tmp_path: Path) -> None:
    config = toml(dataset, tmp_path, steps=2)
    assert r2d("--quiet", "train", config, "--out", tmp_path / "run").returncode == 0
    before = (tmp_path / "run" / "bundle" / "manifest.json").read_bytes()
    assert "is complete; give another path, or --force" in refused("train", config, "--out", tmp_path / "run")
    mistakes = ("base=nobody/nothing/there", "rationale_source=nurse", "lengths.label=2", "batch_tokens=10")
    for mistake in (*mistakes, 'report_to=["trackio"]'):
        refused("train", config, "--out", tmp_path / "run", "--force", "--set", mistake)
        assert (tmp_path / "run" / "bundle" / "manifest.json").read_bytes() == before, mistake
    assert sorted(item.name for item in tmp_path.iterdir()) == ["run", "train.toml"]


def test_a_loss_that_is_no_number_names_step_and_records(dataset: DatasetFolder, tmp_path: Path) -> None:
    config = toml(dataset, tmp_path, steps=4)
    message = refused("train", config, "--out", tmp_path / "run", "--set", "learning_rate=1e30")
    assert "at step 2, whose records are r" in message and "smaller learning_rate" in message
    assert not (tmp_path / "run" / "bundle").exists()
