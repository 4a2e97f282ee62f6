"""The configuration: defaults, per-stage values, overrides, the round trip, and every mistake in one message."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from reason2decide.errors import ConfigError
from reason2decide.method.methods import METHODS
from reason2decide.training.config import Config, Encoder
from reason2decide.training.config_file import describe_keys, load_config, parse_config

MINIMAL = {"method": "r2d", "base": "google/flan-t5-base", "dataset": "data", "rationale_source": "llm", "steps": 100}


def test_five_keys_are_enough_and_the_rest_is_the_papers() -> None:
    config = parse_config(MINIMAL, "test")
    stage1, stage2 = config.stages()
    assert (stage1.alpha, stage1.patience, stage1.selection) == (0.0, 3, "rationale_loss")
    assert (stage2.alpha, stage2.warmup_share, stage2.ramp_share, stage2.sampling_cap) == (0.7, 0.05, 0.6, 0.9)
    assert [config.of(key, "stage1") for key in ("steps", "learning_rate", "batch_size")] == [100, 5e-5, 64]
    assert (config.lengths.input, config.lengths.rationale, config.lengths.label) == (1024, 256, 50)


def test_values_per_stage_fall_back_to_the_default() -> None:
    config = parse_config({**MINIMAL, "learning_rate": {"stage1": 1e-3}, "alpha": 0.5}, "test")
    assert config.of("learning_rate", "stage1") == 1e-3
    assert config.of("learning_rate", "stage2") == 5e-5
    # One alpha is for the stages that weigh two tasks: Stage 1 stays what it is.
    assert [stage.alpha for stage in config.stages()] == [0.0, 0.5]
    given = {"alpha": 0.5, "posterior_weight": 0.3, "contrast_share": 0.2, "patience": 2}
    assert parse_config({**MINIMAL, **given}, "test").without_effect == ["contrast_share"]
    assert parse_config({**MINIMAL, "method": "dss", **given}, "test").without_effect == [
        "posterior_weight",
        "contrast_share",
    ]
    explicit = parse_config({**MINIMAL, "alpha": {"stage1": 0.1}}, "test")
    assert [stage.alpha for stage in explicit.stages()] == [0.1, 0.7]


@pytest.mark.parametrize("method", METHODS)
def test_toml_round_trip(method: str) -> None:
    config = parse_config({**MINIMAL, "method": method, "patience": 7, "dropout": 0.0}, "test")
    assert parse_config(tomllib.loads(config.to_toml()), "test") == config


def test_overrides_and_paths(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('method = "sft"\nbase = "./model"\ndataset = "data"\nsteps = 10\n')
    config = load_config(file, ["steps=20", "learning_rate.sft=1e-3", "base=tiny", "lengths.input=64", "lora.rank=2"])
    assert config.lora is not None and config.lora.rank == 2
    assert load_config(file, ["base.encoder=bert"]).base == Encoder(encoder="bert")
    assert (config.of("steps", "sft"), config.of("learning_rate", "sft")) == (20, 1e-3)
    assert (config.base, config.lengths.input) == ("tiny", 64)
    assert config.dataset == tmp_path / "data"
    assert load_config(file).base == str(tmp_path / "model")
    file.write_text('method = "sft"\nbase = {encoder = "./bert"}\ndataset = "data"\nsteps = 10\n')
    assert load_config(file).base == Encoder(encoder=str(tmp_path / "bert"))


def test_what_decides_the_result_is_the_identity_of_a_run() -> None:
    config = parse_config(MINIMAL, "test")
    for change in ({"checkpoint_every": 7}, {"keep_checkpoints": 9}, {"report_to": ["mlflow"]}, {"dataset": "moved"}):
        assert parse_config({**MINIMAL, **change}, "test").identity() == config.identity(), change
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"steps": 99},
        {"batch_tokens": 512},
        {"optimizer": "adafactor"},
        {"lora": {}},
    ]
    for other in others:
        assert parse_config({**MINIMAL, **other}, "test").identity() != config.identity(), other


def message_of(content: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(content, "run.toml")
    return str(caught.value)


def test_all_mistakes_at_once_with_the_nearest_key() -> None:
    message = message_of({**MINIMAL, "learing_rate": 1, "seed": -1, "lengths": {"inputs": 5}, "batch_size": 0})
    assert "'learing_rate'; did you mean 'learning_rate'?" in message
    assert "'lengths.inputs'; did you mean 'input'?" in message
    assert "seed = -1" in message and "batch_size = 0" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"method": "r2dd"}, "no method 'r2dd'; did you mean 'r2d'? choose one of r2d, sft"),
        ({"steps": {"stage1": 5}}, "steps: none given for stage2"),
        ({"steps": {"stage3": 5, "stage1": 5, "stage2": 5}}, "no such stage; its stages are stage1, stage2"),
        ({"rationale_source": {"stage1": "llm"}}, "rationale_source: none given for stage2"),
        ({"warmup_share": 0.5}, "add up to more than 1"),
        (
            {"precision": "float16"},
            "precision = 'float16': T5 overflows in float16 and its losses become nan; use bfloat16",
        ),
        ({"precision": "int8"}, "precision = 'int8': input should be 'auto', 'float32' or 'bfloat16'"),
        ({"optimizer": "sgd"}, "optimizer = 'sgd': input should be 'adamw' or 'adafactor'"),
        ({"report_to": ["comet"]}, "report_to.0 = 'comet'"),
        ({"base": {"encoderr": "x"}}, "expected a name, a folder, or {encoder ="),
        ({"lora": {"ranks": 4}}, "there is no key 'lora.ranks'; did you mean 'rank'?"),
        ({"steps": "many"}, "steps"),
        ({"on_disagreement": "argue"}, "on_disagreement = 'argue': input should be 'gold', 'skip' or 'contrast'"),
        ({"selection": {"stage1": "macro_f1"}}, "selection.stage1 = 'macro_f1': this stage learns no labels"),
        ({"method": "sft", "selection": "rationale_loss"}, "sft learns no rationales; use 'macro_f1'"),
        ({"method": "r2d-c", "fsdp": True}, "cycle_weight and fsdp together are not supported"),
    ],
)
def test_impossible_values(change: dict[str, object], expected: str) -> None:
    assert expected in message_of({**MINIMAL, **change})


def test_a_single_value_applies_to_what_other_keys_made_of_a_stage() -> None:
    changes = {"on_disagreement": "contrast", "contrast_share": 0.5, "conditioning_dropout": False}
    first, second = parse_config({**MINIMAL, "method": "r2d", **changes}, "test").stages()
    assert (second.on_disagreement, second.contrast_share, second.conditioning_dropout) == ("contrast", 0.5, False)
    assert first.contrast_share == 0
    changes = {"posterior_weight": 0.1, "conditioning_dropout": False}
    _, second = parse_config({**MINIMAL, "method": "r2d-no-sampling", **changes}, "test").stages()
    assert not second.conditioning_dropout and second.sampling_cap == 0


def test_missing_keys_are_named_with_their_meaning() -> None:
    message = message_of({"method": "sft"})
    assert all(f"the key '{key}' is missing" in message for key in ("base", "dataset", "steps"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a file"):
        load_config(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("method = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(broken)
    broken.write_text("")
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        load_config(broken, ["steps"])


def test_every_key_is_described() -> None:
    described = describe_keys()
    assert all(f"{key} " in described for key in Config.model_fields if key != "lengths")
    assert "lengths.rationale" in described
