"""Every kind of base goes the whole road: train, resume, decide, explain, stream."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import DECODER_ONLY, MORE_ENCODER_DECODERS, save
from toy import settings

from reason2decide.data.records import DatasetFolder
from reason2decide.model.predictor import Predictor
from reason2decide.training.config_file import parse_config
from reason2decide.training.run import train

KINDS = (*MORE_ENCODER_DECODERS, *DECODER_ONLY, "qwen3-chat")


@pytest.mark.parametrize("kind", KINDS)
def test_every_base_goes_the_whole_road(kind: str, dataset: DatasetFolder, tmp_path: Path) -> None:
    base, run = save(kind, tmp_path / "base"), tmp_path / "run"
    config = parse_config(
        settings(dataset, base=str(base), method="r2d-posterior", sampling_cap=1.0, ramp_share=0.1, checkpoint_every=2),
        "test",
    )
    bundle = train(config, run)
    weights = (bundle / "model" / "model.safetensors").read_bytes()
    train(config, run, resume=str(run / "stage2" / "checkpoint-2"))
    assert (bundle / "model" / "model.safetensors").read_bytes() == weights

    predictor, records = Predictor.load(bundle), list(dataset.split("test"))
    predictions = list(predictor.predict(records))
    assert len(predictions) == len(records)
    for record, prediction in zip(records[:3], predictions, strict=False):
        (alone,) = predictor.predict([record])
        assert alone.probabilities == pytest.approx(prediction.probabilities, abs=1e-5)
        assert "".join(predictor.stream(record, prediction.predicted_label)) == alone.rationale
