"""Layers that share weights, or that should and in their files do not: what is trained is what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save
from toy import run

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.errors import BaseModelError
from reason2decide.model.bundle import load_bundle
from reason2decide.training import base_check, pretrained
from reason2decide.training.base import load_base


def base_with_a_head_of_its_own(kind: str, folder: Path) -> dict[str, torch.Tensor]:
    """As flan-T5 has it: the configuration says that embeddings are shared, the file has two tensors."""
    base = save(kind, folder)
    weights = load_file(base / "model.safetensors")
    torch.manual_seed(1)
    weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"])
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    return weights


@pytest.mark.parametrize("kind", ["t5-v1.1", "umt5"])
def test_a_head_of_its_own_stays_one(kind: str, dataset: DatasetFolder, tmp_path: Path) -> None:
    """Two stages that learn next to nothing leave the base's weights, those of the head too."""
    weights = base_with_a_head_of_its_own(kind, tmp_path / "base")
    bundle = run(dataset, tmp_path / "run", base=str(tmp_path / "base"), learning_rate=1e-9)
    trained = load_bundle(bundle).model
    for name in ("lm_head.weight", "shared.weight"):
        torch.testing.assert_close(trained.state_dict()[name], weights[name], rtol=0, atol=1e-6)


def test_a_copy_that_shares_what_the_base_does_not_is_found_out(
    dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_with_a_head_of_its_own("t5-v1.1", tmp_path / "base")
    monkeypatch.setattr(base_check, "blank_copy", lambda model: type(model)._from_config(model.config))
    with pytest.raises(BaseModelError, match="weights that it shares between layers are not restored"):
        run(dataset, tmp_path / "run", base=str(tmp_path / "base"))


def test_weights_loaded_otherwise_than_the_file_has_them_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that shares them all the same, as some have done without a word."""
    base_with_a_head_of_its_own("t5-v1.1", tmp_path / "base")
    loaded = pretrained._loaded

    def tied(auto: Any, name: str) -> Any:
        model, missing = loaded(auto, name)
        model.lm_head.weight = model.shared.weight
        return model, missing

    monkeypatch.setattr(pretrained, "_loaded", tied)
    with pytest.raises(BaseModelError, match=r"other weights for lm_head\.weight than its file has"):
        load_base(str(tmp_path / "base"), texts=list, seed=0)


@pytest.mark.parametrize("kind", ["t5", "bart", "modernbert", "t5gemma", "qwen3", "gemma3"])
def test_shared_weights_stay_shared(kind: str, dataset: DatasetFolder, tmp_path: Path) -> None:
    base = save(kind, tmp_path / "base")
    model, _ = load_base(str(base), texts=list, seed=0)
    bundle = run(dataset, tmp_path / "run", base=str(base), learning_rate=1e-9, dropout=0.0)
    trained = load_bundle(bundle).model
    assert trained.num_parameters() == model.num_parameters()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)
