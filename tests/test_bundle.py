"""Bundles: what they hold, and every way in which one is refused rather than trusted."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build

from reason2decide.data.records import LabelSet
from reason2decide.errors import BundleError, MissingExtraError
from reason2decide.files import sha256_file
from reason2decide.model.bundle import load_bundle
from reason2decide.model.calibration import Calibration
from reason2decide.model.manifest import Manifest, read_manifest
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
