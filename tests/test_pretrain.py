"""Span corruption by its definition, and a base that pre-training made being trained from."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CORPUS, save
from toy import run

from reason2decide.data.records import Dataset
from reason2decide.errors import BaseModelError, DataError
from reason2decide.training.base import load_base
from reason2decide.training.pretrain import PretrainSettings, corrupt_spans, pretrain, read_texts

SENTINELS = list(range(1000, 1100))


@given(
    ids=st.lists(st.integers(3, 900), min_size=2, max_size=300),
    seed=st.integers(0, 1000),
    density=st.floats(0.01, 0.9),
    mean=st.floats(1, 10),
)
def test_spans_put_back_give_the_text(ids: list[int], seed: int, density: float, mean: float) -> None:
    rng = np.random.default_rng(seed)
    source, target = corrupt_spans(ids, SENTINELS, rng, noise_density=density, mean_span_length=mean)
    spans: dict[int, list[int]] = {}
    for id in target:
        if id >= 1000:
            spans[id] = last = []
        else:
            last.append(id)
    restored = [token for id in source for token in (spans[id] if id >= 1000 else [id])]
    assert restored == ids
    # Sentinels in order, once each, in both; every span hides something, and something is left before each.
    marks = [id for id in source if id >= 1000]
    assert marks == [id for id in target if id >= 1000] == SENTINELS[: len(marks)]
    assert all(spans.values())
    assert all(a < 1000 or b < 1000 for a, b in itertools.pairwise(source))


def test_share_and_length_of_spans_are_t5s() -> None:
    """Of 200 tokens 15 % are hidden, 30, in 10 spans of 3 on average."""
    source, target = corrupt_spans(
        list(range(200)), SENTINELS, np.random.default_rng(0), noise_density=0.15, mean_span_length=3.0
    )
    assert (len(source), len(target)) == (170 + 10, 30 + 10)


def test_a_pretrained_base_is_trained_from(dataset: Dataset, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("\n".join(CORPUS))
    settings = PretrainSettings(steps=3, batch_size=4)
    words = dataset.path / "train.jsonl"
    base = pretrain([notes], "tiny", tmp_path / "base", settings, vocabulary_from=[words], half=True)
    model, tokenizer = load_base(str(base), texts=list, seed=0)
    # The vocabulary knows the rationales ("The mild rash decides."), which are no text to pre-train on.
    assert len(tokenizer("decides")["input_ids"]) == 2
    assert model.dtype == torch.float32
    assert tokenizer.decode(tokenizer("chest pain")["input_ids"], skip_special_tokens=True) == "chest pain"
    assert {file.name for file in base.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not (base / "texts.bin").exists()
    assert run(dataset, tmp_path / "run", base=str(base)).is_dir()


def test_mistakes(tmp_path: Path) -> None:
    settings = PretrainSettings(steps=1)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Fieber für 3 Tage".encode("cp1252"))
    with pytest.raises(DataError, match=r"not a \.txt or \.jsonl file"):
        list(read_texts([tmp_path / "none.txt"]))
    cases: list[tuple[Any, str, Any, str]] = [
        (DataError, str(save("t5", tmp_path / "t5")), empty, "hold no text"),
        (BaseModelError, str(save("bart", tmp_path / "bart")), empty, "no <extra_id_0>"),
        (DataError, "tiny", tmp_path / "notes.csv", "is not a .txt or .jsonl file"),
        (DataError, "tiny", latin, "not UTF-8"),
        (DataError, "tiny", empty, "hold no text"),
    ]
    for error, base, file, message in cases:
        with pytest.raises(error, match=message):
            pretrain([file], base, tmp_path / "out", settings)
        assert not (tmp_path / "out").exists()
