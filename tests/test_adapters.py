"""Low-rank adapters: alone, beside weights of four bits, resumed, merged, refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from forks import Forks
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tiny_models import save
from toy import run, settings, write_toy
from transformers import AutoModelForCausalLM

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.errors import ConfigError, MissingExtraError
from reason2decide.model.predictor import Predictor
from reason2decide.training.config import Lora
from reason2decide.training.lora import add_adapters, merge_adapters

LORA = {"rank": 4, "targets": ["q", "v"]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    return write_toy(tmp_path_factory.mktemp("data"))


def bundled(run: Path) -> dict[str, NDArray[Any]]:
    return load_file(run / "bundle" / "model" / "model.safetensors")


def in_nf4(weight: NDArray[Any]) -> NDArray[Any]:
    """Weights as four bits give them back, each 64 with their own scale."""
    packed, state = quantize_4bit(torch.from_numpy(weight), quant_type="nf4", compress_statistics=False)
    values: NDArray[Any] = dequantize_4bit(packed, state).numpy()
    return values


@pytest.mark.parametrize("weights", ["float32", "nf4"])
@pytest.mark.parametrize(("kind", "targets"), [("t5", ("q", "v")), ("qwen3", ("q_proj", "v_proj"))])
def test_adapters_train_alone_and_are_merged(
    kind: str, targets: tuple[str, str], weights: str, forks: Forks, dataset: DatasetFolder, tmp_path: Path
) -> None:
    base, config = save(kind, tmp_path / "base"), tmp_path / "train.toml"
    own = {"lora": {"rank": 4, "weights": weights}, "learning_rate": 1e-2, "checkpoint_every": 2, "keep_checkpoints": 9}
    config.write_text(tomli_w.dumps(settings(dataset, base=str(base), **own)))
    ended = forks.run("train", config, "--out", tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    before, after = load_file(base / "model.safetensors"), bundled(tmp_path / "run")
    assert before.keys() == after.keys()
    adapted = {name for name in before if name.split(".")[-2] in targets}
    for name, value in before.items():
        rounded = weights == "nf4" and value.ndim == 2 and name.split(".")[-2] not in NOT_LINEAR
        value = in_nf4(value) if rounded else value
        if name in adapted:  # the difference has the rank of one adapter, which both stages train
            assert 0 < np.linalg.matrix_rank(after[name] - value, tol=1e-5) <= 4
        else:
            np.testing.assert_array_equal(after[name], value, err_msg=name)

    checkpoint = tmp_path / "run" / "stage2" / "checkpoint-2"
    kept = load_file(checkpoint / "model.safetensors")
    assert kept and all("lora_" in name for name in kept)  # not the weights beside them
    resumed = forks.run("train", config, "--out", tmp_path / "run", "--resume", checkpoint)
    assert resumed.returncode == 0, resumed.stderr
    assert all(np.array_equal(value, after[name]) for name, value in bundled(tmp_path / "run").items())
    assert len(list(Predictor.load(tmp_path / "run" / "bundle").predict(dataset.split("test")))) == 12


# The head, what looks up embeddings or positions, and what T5 keeps in float32.
NOT_LINEAR = ("shared", "embed_tokens", "lm_head", "relative_attention_bias", "wo")


def test_a_stage_of_another_base_is_not_resumed(forks: Forks, dataset: DatasetFolder, tmp_path: Path) -> None:
    """Checkpoints hold adapters only, so the weights beside them must be those of before."""
    base, config = save("t5", tmp_path / "base"), tmp_path / "train.toml"
    config.write_text(tomli_w.dumps(settings(dataset, base=str(base), lora=LORA, checkpoint_every=2)))
    assert forks.run("train", config, "--out", tmp_path / "run").returncode == 0
    torch.manual_seed(1)
    save("t5", base)
    file = base / "model.safetensors"
    model = file.read_bytes()
    file.write_bytes(model[:-4] + b"\0\0\0\1")
    resumed = forks.run("train", config, "--out", tmp_path / "run", "--resume", "auto")
    assert resumed.returncode == 2 and "base_weights" in resumed.stderr, resumed.stderr


def test_rounded_weights_compute_what_their_values_compute(tmp_path: Path) -> None:
    """Loss and gradients of the adapters, against a model with the values that four bits give back."""
    base = save("llama", tmp_path / "base")
    found = []
    for weights in ("nf4", "float32"):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        if weights == "float32":
            for name, layer in model.named_modules():
                if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                    layer.weight.data = torch.from_numpy(in_nf4(layer.weight.detach().numpy()))
        add_adapters(model, Lora.model_validate({"rank": 2, "weights": weights}), seed=0)
        trained = [own for own in model.parameters() if own.requires_grad]
        for own in trained:
            torch.nn.init.normal_(own, std=0.1, generator=torch.Generator().manual_seed(own.numel()))
        ids = torch.arange(12)[None]
        loss = model(ids, labels=ids).loss
        loss.backward()
        gradients = torch.cat([own.grad.flatten() for own in trained if own.grad is not None])
        merge_adapters(model)
        assert all(own.weight.dtype == torch.float32 for own in linear(model))
        with torch.no_grad():
            torch.testing.assert_close(model(ids, labels=ids).loss, loss.detach(), rtol=1e-5, atol=1e-5)
        found.append((loss.detach(), gradients))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_every_process_and_every_run_starts_from_the_same_adapters(tmp_path: Path) -> None:
    """Whatever was drawn before: else processes would sum gradients of different weights."""
    base, found = save("llama", tmp_path / "base"), []
    for seed, drawn in ((3, 0), (3, 1), (4, 0)):
        model = AutoModelForCausalLM.from_pretrained(base)
        torch.rand(drawn)
        add_adapters(model, Lora(), seed)
        found.append({name: value for name, value in model.state_dict().items() if "lora_A" in name})
    assert found[0] and all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert not any(torch.equal(value, found[2][name]) for name, value in found[0].items())


def linear(model: Any) -> list[torch.nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]


def test_what_cannot_be_adapted_is_refused(
    dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(save("t5", tmp_path / "base"))
    with pytest.raises(ConfigError, match=r"no linear layer of the base is named 'query'; its linear layers are .*q.*"):
        run(dataset, tmp_path / "run", base=base, lora={"targets": ["query"]})
    for other in ("SelfAttention", "layer_norm", "dropout", "shared", "lm_head"):  # the last shares its weight
        with pytest.raises(ConfigError, match=f"no linear layer of the base is named '{other}'"):
            run(dataset, tmp_path / "run", base=base, lora={"targets": [other]})
    with pytest.raises(ConfigError, match="base tiny has new, random weights, which adapters would leave"):
        run(dataset, tmp_path / "run", base="tiny", lora={})
    with pytest.raises(ConfigError, match=r"base encoder .* has new, random weights"):
        run(dataset, tmp_path / "run", base={"encoder": base}, lora={})
    with pytest.raises(ConfigError, match=r"lora\.weights"):
        run(dataset, tmp_path / "run", base=base, lora={"weights": "int3"})
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r'lora.weights = "nf4".*reason2decide\[qlora\]'):
        run(dataset, tmp_path / "run", base=base, lora={"weights": "nf4"})
    assert not (tmp_path / "run").exists()
