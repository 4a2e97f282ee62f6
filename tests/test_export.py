"""Exports through the real program: parity, use without torch, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from forks import Forks
from tiny_models import save
from toy import run as train_toy

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import Record
from reason2decide.errors import BundleError
from reason2decide.evaluation.results import read_results
from reason2decide.export.bundle import Parity
from reason2decide.export.graphs import WEIGHTS
from reason2decide.files import sha256_file
from reason2decide.model.bundle import load_bundle
from reason2decide.model.decision import Decision
from reason2decide.model.engines.onnx import read_engine
from reason2decide.model.manifest import read_manifest
from reason2decide.model.predictor import Predictor
from reason2decide.model.reading import ReadingSettings

WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "accelerate", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from reason2decide.cli import main
main()
"""


@pytest.fixture(scope="module")
def bundle(dataset: DatasetFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_toy(dataset, tmp_path_factory.mktemp("export") / "run", steps=60, dropout=0.0)


@pytest.fixture(scope="module")
def exported(bundle: Path, forks: Forks) -> Path:
    out = bundle.parent.parent / "float32"
    ended = forks.run("export", bundle, "--out", out)
    assert ended.returncode == 0, ended.stderr
    assert "0.00% of labels changed" in ended.stdout and "warning" not in ended.stderr
    return out


def lines(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines()]


def test_an_export_says_how_near_it_is(exported: Path, bundle: Path, dataset: DatasetFolder) -> None:
    manifest = read_manifest(exported)
    assert manifest.engine is not None and manifest.engine["weights"] == "float32"
    parity = Parity(**manifest.engine["parity"])
    assert parity.records == 12 and parity.log_prob_error < 1e-4 and parity.problems(exact=True) == []
    assert {path.name for path in (exported / "model").iterdir()} == {
        "encoder.onnx", "decoder.onnx", "engine.json", "tokenizer.json", "special_tokens.json",
    }  # fmt: skip
    records = list(dataset.split("test"))
    ours, theirs = Predictor.load(exported), Predictor.load(bundle)
    for own, other in zip(ours.predict(records), theirs.predict(records), strict=True):
        assert own.predicted_label == other.predicted_label and own.rationale == other.rationale
        assert own.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    for record in records[:3]:
        written = ours.rationales([record], ["home care"])[0]
        for predictor in (ours, theirs):
            pieces = list(predictor.stream(record, "home care"))
            assert "".join(pieces).strip() == written and all(pieces)


def test_predict_and_evaluate_take_it_without_torch(
    exported: Path, bundle: Path, dataset: DatasetFolder, forks: Forks, tmp_path: Path
) -> None:
    def r2d(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    cases = dataset.path / "test.jsonl"
    alone = r2d("predict", exported, cases)
    assert alone.returncode == 0, alone.stderr
    expected = lines(forks.run("predict", bundle, cases).stdout)
    for own, other in zip(lines(alone.stdout), expected, strict=True):
        assert own["id"] == other["id"] and own["rationale"] == other["rationale"]
        assert own["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)
    measured = r2d("evaluate", exported, dataset.path, "--out", tmp_path / "results", "--resamples", 20, "--probed", 2)
    assert measured.returncode == 0, measured.stderr
    assert read_results(tmp_path / "results").metrics["accuracy"].value is not None
    torchless = r2d("predict", bundle, cases)
    assert torchless.returncode == 2 and 'pip install "reason2decide[train]"' in torchless.stderr


@pytest.mark.parametrize("weights", [name for name in WEIGHTS if name != "float32"])
def test_smaller_weights(weights: str, bundle: Path, forks: Forks, exported: Path, tmp_path: Path) -> None:
    ended = forks.run("export", bundle, "--out", tmp_path / "small", "--weights", weights)
    assert ended.returncode == 0, ended.stderr
    sizes = [sum(file.stat().st_size for file in (path / "model").iterdir()) for path in (tmp_path / "small", exported)]
    assert sizes[0] < 0.8 * sizes[1]
    assert Predictor.load(tmp_path / "small").bundle.manifest.engine["weights"] == weights  # type: ignore[index]


def test_an_export_that_strays_is_told_with_the_next_better_weights() -> None:
    strayed = Parity(200, 0.3, 0.02, 0.011, 1.5)
    assert [problem.split(",")[0] for problem in strayed.problems(exact=False)] == [
        "2.0% of the labels changed", "macro-F1 fell by 0.0110", "BLEU fell by 1.50",
    ]  # fmt: skip
    assert strayed.problems(exact=True)[0].startswith("log-probabilities differ by up to 0.3")
    assert Parity(200, 0.3, 0.005, None, 1.0).problems(exact=False) == []
    assert list(WEIGHTS)[-1] == "float32"


def test_what_is_refused(exported: Path, bundle: Path, dataset: DatasetFolder, forks: Forks, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        ended = forks.run("export", *arguments)
        assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
        return ended.stderr

    out = tmp_path / "out"
    assert "no weight type 'int4'; give one of: int8, " in refused(bundle, "--out", out, "--weights", "int4")
    assert "already exists" in refused(bundle, "--out", exported)
    assert "is an export for onnx; give the bundle" in refused(exported, "--out", out)
    assert "is not a bundle" in refused(tmp_path, "--out", out)
    other = tmp_path / "other"
    shutil.copytree(dataset.path, other)
    (other / "validation.jsonl").write_text((other / "test.jsonl").read_text())
    assert "was changed after import" in refused(bundle, "--out", out, "--dataset", other)
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    altered = Path(shutil.copytree(exported, tmp_path / "altered"))
    graph = altered / "model" / "decoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"decoder.onnx was altered after the bundle was saved"):
        Predictor.load(altered)
    with pytest.raises(BundleError, match="is an export"):
        load_bundle(exported)


@pytest.mark.parametrize("architecture", ["t5-v1.1", "bart"])
def test_other_architectures_through_the_program(
    architecture: str, dataset: DatasetFolder, forks: Forks, tmp_path: Path
) -> None:
    base = save(architecture, tmp_path / "base")
    trained = train_toy(dataset, tmp_path / "run", base=str(base), steps=2)
    ended = forks.run("export", trained, "--out", tmp_path / "out")
    assert ended.returncode == 0 and "warning" not in ended.stderr, ended.stderr


# --- damage that a hash does not show ---------------------------------------------------------------------------------


def change_export(exported: Path, folder: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    """A copy whose decoder was changed before its files were hashed."""
    copy = Path(shutil.copytree(exported, folder / "changed"))
    decoder = copy / "model" / "decoder.onnx"
    model = onnx.load(decoder)
    change(model)
    decoder.write_bytes(model.SerializeToString())
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["model/decoder.onnx"] = sha256_file(decoder)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_an_export_with_weights_that_are_not_finite_is_refused(exported: Path, tmp_path: Path) -> None:
    def damage(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weight.raw_data = np.full(len(weight.raw_data) // 4, np.nan, np.float32).tobytes()

    with pytest.raises(BundleError, match="values that are not finite numbers"):
        Predictor.load(change_export(exported, tmp_path, damage))


def test_weights_outside_the_folder_are_not_loaded(exported: Path, tmp_path: Path) -> None:
    """What is loaded is what was hashed: neither a graph nor its data lies elsewhere."""

    def stray(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        (tmp_path / "outside.bin").write_bytes(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "../../outside.bin"), ("offset", "0")):
            weight.external_data.append(onnx.StringStringEntryProto(key=key, value=value))

    with pytest.raises(BundleError, match=r"decoder\.onnx cannot be loaded"):
        Predictor.load(change_export(exported, tmp_path, stray))
    engine = tmp_path / "changed" / "model" / "engine.json"
    engine.write_text(engine.read_text().replace('"decoder.onnx"', '"../../float32/model/decoder.onnx"'))
    with pytest.raises(BundleError, match="is not what an export writes"):
        read_engine(engine.parent)


def test_an_export_overwritten_in_use_changes_nothing(exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    predictor, case = Predictor.load(copy), Record("1", "40 yo with chest pain since 2 days")
    before = predictor.distributions([case]), predictor.rationales([case], ["home care"])
    for file in (copy / "model").iterdir():
        file.write_bytes(b"0" * (file.stat().st_size // 2))
    assert (predictor.distributions([case]), predictor.rationales([case], ["home care"])) == before


def test_longer_prompts_in_an_export(exported: Path, bundle: Path) -> None:
    """T5's positions are relative: both engines read on, and alike."""
    text = "40 yo with mild rash since 2 days. " * 15
    reading = ReadingSettings("refuse", 400)
    (own,), (other,) = (Predictor.load(path, reading).decide([Record("1", text)]) for path in (exported, bundle))
    assert isinstance(own, Decision) and isinstance(other, Decision) and not own.cut
    assert own.probabilities == pytest.approx(other.probabilities, abs=1e-4)
