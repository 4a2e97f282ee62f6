"""A real decoder-only base: SmolLM2-135M-Instruct, with its chat template, trained by adapters on a toy task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from llama_server import weights
from safetensors.torch import load_file
from toy import settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.model.calibration import label_distribution
from reason2decide.model.predictor import Predictor
from reason2decide.training.config_file import parse_config
from reason2decide.training.run import train


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the hub has it: the library reads its rounded weights, but saves only a model made anew."""
    file, folder = weights(), tmp_path_factory.mktemp("smollm2")
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


def test_a_real_model_learns_decides_and_resumes(smollm2: Path, dataset: DatasetFolder, tmp_path: Path) -> None:
    """Its answers move to the labels' in a few steps; its scores are those of one pass over the whole conversation."""
    config = parse_config(
        settings(
            dataset,
            base=str(smollm2),
            method="r2d-no-stage1",
            steps=4,
            batch_size=4,
            learning_rate=2e-3,
            learning_rate_warmup=0.0,
            lora={"rank": 8},
            sampling_cap=0.5,
            ramp_share=0.1,
            checkpoint_every=2,
            train_records=24,
            lengths={"input": 64, "rationale": 24, "label": 16},
        ),
        "test",
    )
    bundle = train(config, tmp_path / "run")
    first = load_file(bundle / "model" / "model.safetensors")
    losses = _losses(tmp_path / "run" / "log.jsonl")
    assert losses[-1] < 0.7 * losses[0]
    train(config, tmp_path / "run", resume=str(tmp_path / "run" / "stage2" / "checkpoint-2"))
    again = load_file(bundle / "model" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in first.items())

    predictor, record = Predictor.load(bundle), next(iter(dataset.split("test")))
    (prediction,) = predictor.predict([record])
    assert prediction.rationale
    tokenizer, model = AutoTokenizer.from_pretrained(bundle / "model"), predictor.bundle.model  # type: ignore[attr-defined]
    asked = [{"role": "user", "content": f"{record.text}\npredict:"}]
    before = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    scores = []
    for label in predictor.choices(record):
        ids = tokenizer(f"{label}{tokenizer.eos_token}", add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([[*before, *ids]])).logits[0, len(before) - 1 : -1]
        scores.append(float(logits.log_softmax(-1)[range(len(ids)), ids].sum()))
    expected = label_distribution(np.array(scores), predictor.bundle.calibration.temperature)
    assert list((prediction.probabilities or {}).values()) == pytest.approx(expected.tolist(), abs=1e-4)


def _losses(log: Path) -> list[float]:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row["loss"] for row in rows if row["event"] == "train"][:4]
