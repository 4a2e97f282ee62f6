"""The methods as data: each of the paper's settings where a reader looks for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reason2decide.errors import ConfigError
from reason2decide.method.methods import METHODS, method_named


def test_stage1_trains_rationales_only_and_sft_labels_only() -> None:
    stage1, stage2 = METHODS["r2d"].stages
    assert (stage1.learns_labels, stage1.learns_rationales, stage1.selection) == (False, True, "rationale_loss")
    assert (stage2.learns_labels, stage2.learns_rationales, stage2.selection) == (True, True, "macro_f1")
    (sft,) = METHODS["sft"].stages
    assert (sft.learns_labels, sft.learns_rationales) == (True, False)


def test_ablations_differ_from_r2d_in_one_thing() -> None:
    r2d = METHODS["r2d"].stages
    assert METHODS["r2d-no-stage1"].stages == r2d[1:]
    without = METHODS["r2d-no-sampling"].stages
    assert without[0] == r2d[0]
    assert without[1] == replace(r2d[1], sampling_cap=0.0)


def test_what_is_learnt_under_a_wrong_label_is_all_that_differs_from_r2d() -> None:
    r2d = METHODS["r2d"].stages
    for rule in ("skip", "contrast"):
        stage1, stage2 = METHODS[f"r2d-{rule}"].stages
        assert stage1 == r2d[0] and stage2 == replace(r2d[1], on_disagreement=rule)
    assert {stage.on_disagreement for stage in r2d} == {"gold"}


def test_how_each_finished_model_is_asked() -> None:
    asked = {name: method.explain for name, method in METHODS.items()}
    assert asked == {
        "r2d": "conditioned",
        "sft": "none",
        "dss": "unconditioned",
        "r2d-skip": "conditioned",
        "r2d-contrast": "conditioned",
        "r2d-no-stage1": "conditioned",
        "r2d-no-sampling": "conditioned",
    }


def test_unknown_method() -> None:
    with pytest.raises(ConfigError, match="choose one of r2d, sft, dss"):
        method_named("R2D")
