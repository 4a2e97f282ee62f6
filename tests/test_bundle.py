"""Bundles: what they hold, and every way in which one is refused rather than trusted."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_models import build

from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import BundleError, MissingExtraError
from reason2decide.files import sha256_file
from reason2decide.model.bundle import load_bundle
from reason2decide.model.calibration import Calibration
from reason2decide.model.engines import NotFinite
from reason2decide.model.manifest import Manifest, read_manifest
from reason2decide.model.predictor import Predictor
from reason2decide.model.prompt_encoder import Lengths
from reason2decide.training.save import save_bundle

MANIFEST = Manifest(
    method="r2d",
    base="tiny",
    labels=LabelSet(("home care", "see a doctor"), ordinal=True, urgent="last"),
    lengths=Lengths(input=64, rationale=16, label=20),
    rationale_sources={"stage1": "llm", "stage2": "nurse"},
    dataset={"name": "toy", "sha256": {"train": "0"}},
    training={"stage2": {"selection": "macro_f1", "best_value": 0.5, "best_step": 7}},
    versions={"torch": "x"},
    created="2026-01-01T00:00:00+00:00",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    (folder / "log.jsonl").write_text('{"stage": "stage2", "event": "train", "step": 1, "loss": 0.5}\n')
    model, tokenizer = build("t5")
    save_bundle(
        folder / "bundle",
        MANIFEST,
        model,
        tokenizer,
        Calibration.fit([np.array([1.0, 0.0])], [0]),
        config_toml="seed = 0\n",
        training_log=folder / "log.jsonl",
    )
    return folder / "bundle"


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


def change_manifest(bundle: Path, **changes: Any) -> None:
    file = bundle / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(bundle: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    return str(caught.value)


def test_round_trip(saved: Path) -> None:
    loaded = load_bundle(saved)
    assert loaded.manifest == MANIFEST
    assert loaded.manifest.rationale_source == "nurse"
    assert loaded.encoder.lengths == MANIFEST.lengths
    expected = build("t5")[0].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.model.state_dict().items())
    assert "A qualified person must verify" in (saved / "README.md").read_text()


def test_no_torch_file_is_ever_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a bundle was read by something that can run code")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    load_bundle(saved)


def test_without_torch_it_says_what_to_do(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"not an export \(`r2d export`.*pip install .reason2decide\[train\]"):
        load_bundle(saved)


def test_another_prompt_version(bundle: Path) -> None:
    change_manifest(bundle, prompt_version=0)
    assert "prompt version 0" in refusal(bundle) and "train again" in refusal(bundle)


def test_another_format(bundle: Path) -> None:
    change_manifest(bundle, bundle_format=99)
    assert "bundle format 99, this program reads 2" in refusal(bundle)


def test_unknown_method(bundle: Path) -> None:
    change_manifest(bundle, method="r3d")
    assert "'r3d'" in refusal(bundle)


def test_altered_missing_and_added_files(bundle: Path) -> None:
    (bundle / "extra.txt").write_text("?")
    assert "extra.txt, which its manifest does not list" in refusal(bundle)
    (bundle / "extra.txt").unlink()
    weights = bundle / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert "model.safetensors was altered" in refusal(bundle)
    weights.unlink()
    assert "lacks model/model.safetensors" in refusal(bundle)


def test_a_pickle_is_refused_even_if_listed(bundle: Path) -> None:
    file = bundle / "model" / "pytorch_model.bin"
    file.write_bytes(pickle.dumps({"a": 1}))
    listed = json.loads((bundle / "manifest.json").read_text())["files"]
    change_manifest(bundle, files={**listed, "model/pytorch_model.bin": sha256_file(file)})
    assert "may run code when read" in refusal(bundle)


def test_folders_that_are_no_bundles(tmp_path: Path, bundle: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "none")
    assert f"did you mean {bundle}?" in refusal(bundle.parent)
    (bundle / "manifest.json").write_text("{}")
    assert "not the manifest of a bundle" in refusal(bundle)
    with pytest.raises(BundleError):
        read_manifest(bundle)


# --- damage that a hash does not show ---------------------------------------------------------------------------------


def sign_again(bundle: Path) -> None:
    """List the files with the hashes they have now, as whoever saved damaged weights would have."""
    manifest = read_manifest_unchecked(bundle)
    change_manifest(bundle, files={name: sha256_file(bundle / name) for name in manifest["files"]})


def read_manifest_unchecked(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return content


def change_weights(bundle: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = bundle / "model" / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    change(weights)
    safetensors.torch.save_file(weights, file, {"format": "pt"})
    sign_again(bundle)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, bundle: Path) -> None:
    name = "decoder.final_layer_norm.weight"
    change_weights(bundle, lambda weights: weights[name].__setitem__(0, value))
    assert f"weights of {bundle} are damaged: {name} has values that are not finite numbers" in refusal(bundle)


def test_a_missing_tensor_is_refused(bundle: Path) -> None:
    name = "decoder.block.0.layer.1.EncDecAttention.q.weight"
    change_weights(bundle, lambda weights: weights.pop(name))
    assert f"the weights of {bundle} lack the tensor {name}" in refusal(bundle)


def test_nothing_that_is_not_finite_leaves_the_engine(saved: Path) -> None:
    predictor = Predictor.load(saved)
    model = predictor.engine.model  # type: ignore[attr-defined]
    model.decoder.final_layer_norm.weight.data[0] = float("nan")
    for ask in (
        lambda: predictor.distributions([Record("1", "cough")]),
        lambda: predictor.rationales([Record("1", "cough")], ["home care"]),
        lambda: list(predictor.stream(Record("1", "cough"), "home care")),
    ):
        with pytest.raises(NotFinite, match="values that are not finite numbers"):
            ask()


def test_a_bundle_overwritten_in_use_changes_nothing(bundle: Path) -> None:
    """Loaded weights are the loader's own: not those of a file that others write to, or cut."""
    predictor, case = Predictor.load(bundle), Record("1", "cough")
    before = predictor.distributions([case]), predictor.rationales([case], ["home care"])
    weights = bundle / "model" / "model.safetensors"
    content = weights.read_bytes()
    with weights.open("r+b") as stream:
        stream.seek(len(content) // 2)
        stream.write(bytes(len(content) // 4))
        stream.truncate(3 * len(content) // 4)
    assert (predictor.distributions([case]), predictor.rationales([case], ["home care"])) == before
    assert "was altered" in refusal(bundle)


def test_a_folder_from_a_hub_or_a_clone_loads(bundle: Path) -> None:
    for name in (".gitattributes", ".git/config", ".cache/huggingface/download/manifest.json.metadata"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("?")
    load_bundle(bundle)


def test_only_listed_files_inside_the_folder_are_loaded(bundle: Path) -> None:
    listed = read_manifest_unchecked(bundle)["files"]
    outside = bundle.parent / "outside.txt"
    outside.write_text("?")
    change_manifest(bundle, files={**listed, "../outside.txt": sha256_file(outside)})
    assert "lacks ../outside.txt" in refusal(bundle)


def test_the_hash_is_that_of_what_was_loaded(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.manifest.sha256 == sha256_file(bundle / "manifest.json")
    change_manifest(bundle, created="2030-01-01T00:00:00+00:00")
    assert loaded.manifest.sha256 != sha256_file(bundle / "manifest.json")


def test_no_space_for_the_copy(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import reason2decide.model.manifest as module

    def full(*_: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    assert "No space left on device); TMPDIR names the folder" in refusal(bundle)
