"""What a configuration may ask of the engine besides: each option trains, and does what it says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from forks import Forks
from safetensors.numpy import load_file, save_file
from tiny_models import build, minilm, save, save_encoder
from toy import run, settings, write_toy
from transformers import AutoModel

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import Record
from reason2decide.errors import BaseModelError, BundleError, CheckpointError, ConfigError
from reason2decide.model.bundle import load_bundle, read_training_log
from reason2decide.model.predictor import Predictor
from reason2decide.model.reading import ReadingSettings
from reason2decide.training import preparation
from reason2decide.training.base import load_base
from reason2decide.training.config import Encoder, Lora
from reason2decide.training.config_file import parse_config
from reason2decide.training.optimizers import new_optimizer
from reason2decide.training.run import train


def weights(run: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = load_file(run / "bundle" / "model" / "model.safetensors")
    return found


def log(run: Path, event: str = "train", stage: str = "stage2") -> list[dict[str, Any]]:
    rows = map(json.loads, (run / "log.jsonl").open())
    return [row for row in rows if row["event"] == event and row["stage"] == stage]


def test_every_step_is_logged(dataset: DatasetFolder, tmp_path: Path) -> None:
    """All that the log promises, for each step, with numbers that hang together."""
    run(
        dataset,
        tmp_path / "run",
        steps=20,
        ramp_share=0.2,
        warmup_share=0.1,
        evaluate_every=10,
        learning_rate_warmup=0.0,
    )
    rows = log(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 21))
    for row in rows:
        assert row["loss"] == pytest.approx(
            row["alpha"] * row["label_loss"] + (1 - row["alpha"]) * row["rationale_loss"]
        )
        assert 0 <= row["drawn_share"] <= 1 and 0 <= row["drawn_wrong_share"] <= 1
        assert 0 <= row["padding_share"] < 0.5 and row["tokens_per_second"] > 0 and row["grad_norm"] > 0
        assert row["peak_memory_bytes"] > 1e8
    # alpha: 0, 0.35, then 0.7. pi: 0 while warming up for 2 steps, then a quarter more each of 4 steps, at most 0.9.
    assert [row["alpha"] for row in rows[:4]] == pytest.approx([0.0, 0.35, 0.7, 0.7])
    assert [row["sampling_probability"] for row in rows[:8]] == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 0.9, 0.9])
    assert all(row["drawn_share"] == 0 for row in rows[:3]) and any(row["drawn_share"] > 0.5 for row in rows[6:])
    assert rows[0]["learning_rate"] == pytest.approx(1e-3) and rows[-1]["learning_rate"] == pytest.approx(1e-3 / 20)


def test_tensorboard_gets_what_the_log_has(dataset: DatasetFolder, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(dataset, tmp_path / "run", steps=3, method="sft", report_to=["tensorboard"], evaluate_every=1)
    (events,) = (tmp_path / "run" / "tensorboard").rglob("events.*")
    board = EventAccumulator(str(events.parent))
    board.Reload()
    found = {event.step: event.value for event in board.Scalars("sft/label_loss")}
    expected = {row["step"]: row["label_loss"] for row in log(tmp_path / "run", stage="sft")}
    assert found == pytest.approx(expected)
    assert len(board.Scalars("sft/validation_macro_f1")) == 3


def test_steps_of_trackers_go_on_from_stage_to_stage(dataset: DatasetFolder, tmp_path: Path) -> None:
    """Some drop what comes with a lower step than before."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(dataset, tmp_path / "run", steps={"stage1": 2, "stage2": 3}, report_to=["tensorboard"])
    (events,) = (tmp_path / "run" / "tensorboard").rglob("events.*")
    board = EventAccumulator(str(events.parent))
    board.Reload()
    assert [event.step for event in board.Scalars("stage1/rationale_loss")] == [1, 2]
    assert [event.step for event in board.Scalars("stage2/rationale_loss")] == [3, 4, 5]


def test_a_missing_tracker_is_named_with_its_install(forks: Forks, dataset: DatasetFolder, tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text(tomli_w.dumps(settings(dataset, report_to=["trackio"])))
    ended = forks.run("train", config, "--out", tmp_path / "run")
    assert ended.returncode == 2 and 'pip install "reason2decide[trackio]"' in ended.stderr


def test_gradients_are_clipped(dataset: DatasetFolder, tmp_path: Path) -> None:
    """To a norm far below Adam's epsilon, so that a step moves next to nothing."""
    base = save("t5", tmp_path / "base")
    before = load_file(base / "model.safetensors")
    moved = {}
    for norm in (1e-12, 1.0):
        out = tmp_path / f"{norm}"
        run(dataset, out, base=str(base), method="sft", steps=2, max_grad_norm=norm, weight_decay=0.0)
        after = weights(out)
        moved[norm] = max(float(np.abs(after[name] - value).max()) for name, value in before.items() if name in after)
    assert moved[1e-12] < 1e-6 < 1e-4 < moved[1.0]


def test_matrices_decay_and_vectors_do_not(tmp_path: Path) -> None:
    model, _ = build("t5")
    config = parse_config({"method": "sft", "base": "tiny", "dataset": "d", "steps": 1, "weight_decay": 0.25}, "test")
    groups = new_optimizer(model, config).param_groups
    assert {(group["weight_decay"], own.dim() > 1) for group in groups for own in group["params"]} == {
        (0.25, True),
        (0.0, False),
    }


def test_a_stage_ends_when_it_has_not_got_better_for_long_enough(dataset: DatasetFolder, tmp_path: Path) -> None:
    """At a rate of next to nothing the first validation stays the best, and two more are waited for."""
    settings = {"method": "sft", "steps": 30, "learning_rate": 1e-12, "evaluate_every": 1, "patience": 2}
    run(dataset, tmp_path / "run", select_from=0.0, **settings)
    assert len(log(tmp_path / "run", stage="sft")) == 3


def test_a_token_budget_bounds_each_batch(dataset: DatasetFolder, tmp_path: Path) -> None:
    run(dataset, tmp_path / "run", steps=4, batch_tokens=200)
    assert len(log(tmp_path / "run")) == 4
    with pytest.raises(ConfigError, match=r"batch_tokens = 20 is smaller than one record: 'r\d+' takes \d+ tokens"):
        run(dataset, tmp_path / "other", batch_tokens=20)
    assert not (tmp_path / "other").exists()


def test_texts_are_tokenised_once_for_all_runs(tmp_path: Path) -> None:
    dataset, base = write_toy(tmp_path / "toy"), str(save("t5", tmp_path / "base"))
    run(dataset, tmp_path / "a", base=base)
    tables = {path: path.stat().st_mtime_ns for path in (dataset.path / ".tokens").rglob("*")}
    run(dataset, tmp_path / "b", base=base, seed=1)
    assert {path: path.stat().st_mtime_ns for path in (dataset.path / ".tokens").rglob("*")} == tables
    # A damaged table is made again, another limit has a table of its own.
    file = max(dataset.path.glob(".tokens/*/tokens"), key=lambda path: path.stat().st_mtime_ns)
    before = file.read_bytes()
    file.write_bytes(before[:-4])
    run(dataset, tmp_path / "c", base=base)
    assert file.read_bytes() == before
    run(dataset, tmp_path / "d", base=base, lengths={"input": 32, "rationale": 24, "label": 32})
    assert len(list(dataset.path.glob(".tokens/*"))) > len({path.parent for path in tables if path.is_file()})


def test_gradient_checkpointing_changes_nothing_but_memory(dataset: DatasetFolder, tmp_path: Path) -> None:
    """Dropout on: what is computed again draws what it drew before."""
    changes = {"dropout": 0.1, "steps": 6, "ramp_share": 0.2}
    run(dataset, tmp_path / "a", **changes)
    run(dataset, tmp_path / "b", gradient_checkpointing=True, **changes)
    for row, other in zip(log(tmp_path / "a"), log(tmp_path / "b"), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert row["drawn_wrong_share"] == other["drawn_wrong_share"]


def test_conditioning_labels_with_and_without_dropout(dataset: DatasetFolder, tmp_path: Path) -> None:
    """Without any dropout both settings predict the same labels; with it they take unlike ones."""
    changes = {"method": "r2d-no-stage1", "steps": 12, "warmup_share": 0.0, "ramp_share": 0.0, "batch_size": 16}
    shares = {}
    for rate in (0.0, 0.5):
        for setting in (True, False):
            out = tmp_path / f"{rate}{setting}"
            run(dataset, out, dropout=rate, conditioning_dropout=setting, **changes)
            shares[rate, setting] = [row["drawn_wrong_share"] for row in log(out)]
    assert shares[0.0, True] == shares[0.0, False] and any(shares[0.0, True])
    assert shares[0.5, True] != shares[0.5, False]


def test_compiled_forward_passes(dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for the default compiler, whose own two minutes of C++ are left out."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    changes = {"method": "sft", "steps": 2, "dropout": 0.0, "base": str(save("t5", tmp_path / "base"))}
    run(dataset, tmp_path / "plain", **changes)
    run(dataset, tmp_path / "compiled", compile=True, **changes)
    for row, other in zip(log(tmp_path / "plain", stage="sft"), log(tmp_path / "compiled", stage="sft"), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_bfloat16_on_a_cpu(forks: Forks, dataset: DatasetFolder, tmp_path: Path) -> None:
    """Sixteen bits round what passes compute; weights stay in thirty-two, and a run resumes to the same bits."""
    changes = {"method": "r2d-posterior", "dropout": 0.1, "checkpoint_every": 4, "patience": 99}
    config = tmp_path / "train.toml"
    for precision in ("auto", "bfloat16"):
        config.write_text(tomli_w.dumps(settings(dataset, precision=precision, **changes)))
        assert forks.run("train", config, "--out", tmp_path / precision).returncode == 0
    exact, rounded = ([row["loss"] for row in log(tmp_path / name, stage="stage1")] for name in ("auto", "bfloat16"))
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.03)
    whole = weights(tmp_path / "bfloat16")
    assert {value.dtype for value in whole.values()} == {np.dtype("float32")}
    checkpoint = tmp_path / "bfloat16" / "stage2" / "checkpoint-4"
    ended = forks.run("train", config, "--out", tmp_path / "bfloat16", "--resume", checkpoint)
    assert ended.returncode == 0, ended.stderr
    assert all(np.array_equal(value, whole[name]) for name, value in weights(tmp_path / "bfloat16").items())


def test_what_auto_came_to_is_part_of_a_run(
    dataset: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begun in bfloat16 on a GPU does not go on in float32 on a machine without one."""
    with monkeypatch.context() as gpu:
        gpu.setattr(preparation, "_use_bfloat16", lambda precision: True)
        run(dataset, tmp_path / "run", method="sft", steps=4)
    config = parse_config(settings(dataset, method="sft", steps=4), "test")
    with pytest.raises(CheckpointError, match="precision was bfloat16, now float32"):
        train(config, tmp_path / "run", resume="auto")


def test_adapters_scale_by_twice_their_rank_unless_told() -> None:
    assert (Lora().scale, Lora(rank=8).scale, Lora(rank=8, alpha=32).scale) == (32, 16, 32)


def test_adafactor_trains_and_resumes(forks: Forks, dataset: DatasetFolder, tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text(
        tomli_w.dumps(settings(dataset, method="sft", steps=12, optimizer="adafactor", checkpoint_every=4, patience=99))
    )
    assert forks.run("train", config, "--out", tmp_path / "run").returncode == 0
    whole = weights(tmp_path / "run")
    ended = forks.run("train", config, "--out", tmp_path / "run", "--resume", tmp_path / "run" / "sft" / "checkpoint-8")
    assert ended.returncode == 0, ended.stderr
    assert all(np.array_equal(value, whole[name]) for name, value in weights(tmp_path / "run").items())
    losses = [row["loss"] for row in log(tmp_path / "run", stage="sft")]
    assert losses[-1] < losses[0]


def test_memory_is_told_before_and_checked_after(forks: Forks, dataset: DatasetFolder, tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text(tomli_w.dumps(settings(dataset, batch_size=48)))
    said = forks.run("train", config, "--out", tmp_path / "run").stderr
    assert "stage1: memory about 0." in said and "activations of 36 records" in said
    shares = [float(line.split(",")[1].split()[0]) for line in said.splitlines() if "memory peak" in line]
    assert len(shares) == 2 and all(0.5 < share < 1.5 for share in shares)


def test_a_clinical_encoder_becomes_a_model_that_decides_and_explains(dataset: DatasetFolder, tmp_path: Path) -> None:
    """From a real MiniLM encoder: trained, bundled, loaded, asked."""
    bundle = run(dataset, tmp_path / "run", base={"encoder": str(minilm())}, steps=2, evaluate_every=2, batch_size=4)
    model = load_bundle(bundle).model
    assert model.config.model_type == "encoder-decoder" and model.config.encoder.model_type == "bert"
    assert all(math.isfinite(row["loss"]) for row in read_training_log(bundle))
    prediction = next(iter(Predictor.load(bundle).predict(dataset.split("test"))))
    assert prediction.probabilities is not None and sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.rationale is not None
    assert torch.isfinite(model.decoder.get_output_embeddings().weight).all()


def test_a_base_with_weights_that_no_loss_reaches_resumes(forks: Forks, dataset: DatasetFolder, tmp_path: Path) -> None:
    """The pooler of an encoder gets no gradient, so the optimizer has no state of it."""
    config, base = tmp_path / "train.toml", save_encoder("roberta", tmp_path / "base")
    assert any("pooler" in name for name in load_file(base / "model.safetensors"))
    values = settings(dataset, base={"encoder": str(base)}, steps=2, batch_size=4, checkpoint_every=1)
    config.write_text(tomli_w.dumps(values | {"keep_checkpoints": 9}))
    assert forks.run("train", config, "--out", tmp_path / "run").returncode == 0
    whole = weights(tmp_path / "run")
    resumed = forks.run("train", config, "--out", tmp_path / "run", "--resume", tmp_path / "run/stage2/checkpoint-1")
    assert resumed.returncode == 0, resumed.stderr
    assert all(np.array_equal(value, whole[name]) for name, value in weights(tmp_path / "run").items())


@pytest.mark.parametrize("kind", ["roberta", "modernbert"])
def test_an_encoder_saved_in_sixteen_bits_is_trained_in_thirty_two(kind: str, tmp_path: Path) -> None:
    base = save_encoder(kind, tmp_path / "base")
    AutoModel.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    model, tokenizer = load_base(Encoder(encoder=str(base)), texts=list, seed=0)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert tokenizer.clean_up_tokenization_spaces is False


@pytest.mark.parametrize("kind", ["roberta", "modernbert"])
def test_an_encoder_whose_weights_have_other_names_is_refused(kind: str, tmp_path: Path) -> None:
    """As one that was saved inside another model; the library would take random weights in their place."""
    base = save_encoder(kind, tmp_path / "base")
    load_base(Encoder(encoder=str(base)), texts=list, seed=0)
    held = load_file(base / "model.safetensors")
    save_file({f"wrapped.{name}": value for name, value in held.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseModelError, match=r"lacks \d+ of its weights, such as embeddings"):
        load_base(Encoder(encoder=str(base)), texts=list, seed=0)


def test_positions_that_count_on_from_the_padding_token(dataset: DatasetFolder, tmp_path: Path) -> None:
    """RoBERTa's: of 66 it reads 64, and the model trained on as many reads a text that fills them."""
    base = {"encoder": str(save_encoder("roberta", tmp_path / "base"))}
    lengths = {"input": 66, "rationale": 24, "label": 32}
    with pytest.raises(ConfigError, match=r"has 64 positions; set lengths\.input to at most 64"):
        run(dataset, tmp_path / "run", base=base, lengths=lengths)
    bundle = run(dataset, tmp_path / "run", base=base, lengths=lengths | {"input": 64})
    with pytest.raises(BundleError, match="reads prompts of at most 64 tokens, 66 are asked for"):
        Predictor.load(bundle, ReadingSettings(input_tokens=66))
    (decided,) = Predictor.load(bundle).predict([Record("long", "chest pain " * 200)])
    assert decided.predicted_label


def test_encoders_that_cannot_be_used(dataset: DatasetFolder, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="has a decoder already; give it as base"):
        run(dataset, tmp_path / "run", base={"encoder": str(save("t5", tmp_path / "t5"))})
    with pytest.raises(BaseModelError, match=r"base = \{encoder = "):
        run(dataset, tmp_path / "run", base=str(minilm()))
    with pytest.raises(ConfigError, match="has 512 positions"):
        lengths = {"input": 600, "rationale": 24, "label": 32}
        run(dataset, tmp_path / "run", base={"encoder": str(minilm())}, lengths=lengths)
    assert not (tmp_path / "run").exists()


def test_a_base_that_cannot_be_compiled_says_so(dataset: DatasetFolder, tmp_path: Path) -> None:
    """Here for want of a compiler, as on many machines."""
    config = tmp_path / "train.toml"
    config.write_text(tomli_w.dumps(settings(dataset, compile=True)))
    command = [sys.executable, "-m", "reason2decide", "train", str(config), "--out", str(tmp_path / "run")]
    env = {**os.environ, "CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "compile = true, but this base cannot be compiled on this machine" in done.stderr
