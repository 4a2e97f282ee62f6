"""The methods as data: each of the paper's settings where a reader looks for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from reason2decide.errors import ConfigError
from reason2decide.method.methods import METHODS, method_named
from reason2decide.training.config_file import parse_config


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


def test_methods_whose_rationale_follows_the_label_differ_from_r2d_in_what_they_say() -> None:
    r2d = METHODS["r2d"].stages
    following = replace(r2d[1], conditioning_dropout=False, selection="decision_and_reason")
    differences: dict[str, dict[str, Any]] = {
        "r2d-skip": {"on_disagreement": "skip"},
        "r2d-posterior": {"on_disagreement": "skip", "posterior_weight": 0.1},
        "r2d-contrast": {"on_disagreement": "contrast", "contrast_share": 0.25},
        "r2d-contrast-posterior": {"on_disagreement": "contrast", "contrast_share": 0.25, "posterior_weight": 0.1},
        "r2d-c": {"adaptive_sampling": True, "cycle_weight": 0.1},
    }
    for name, changes in differences.items():
        assert METHODS[name].stages == (r2d[0], replace(following, **changes))
    assert {(stage.on_disagreement, stage.posterior_weight, stage.cycle_weight) for stage in r2d} == {("gold", 0, 0)}


def test_last_stages_pick_from_the_same_share_of_steps() -> None:
    """r2d's warm-up and ramp end at 65 %: no method picks its best checkpoint from before that."""
    assert {method.stages[-1].select_step(1000) for method in METHODS.values()} == {650}
    assert METHODS["r2d"].stages[0].select_step(1000) == 0
    late = replace(METHODS["r2d"].stages[1], ramp_share=0.8)
    assert late.select_step(1000) == 850


def test_how_each_finished_model_is_asked() -> None:
    asked = {name: method.explain for name, method in METHODS.items()}
    assert asked == {
        "r2d": "conditioned",
        "sft": "none",
        "dss": "unconditioned",
        "r2d-skip": "conditioned",
        "r2d-posterior": "conditioned",
        "r2d-contrast": "conditioned",
        "r2d-contrast-posterior": "conditioned",
        "r2d-c": "conditioned",
        "r2d-no-stage1": "conditioned",
        "r2d-no-sampling": "conditioned",
    }


def test_the_published_methods_have_two_prompts_and_ours_one_pass() -> None:
    two = {name for name, method in METHODS.items() if method.layout == "two-prompt"}
    assert two == {"r2d", "sft", "dss", "r2d-c", "r2d-no-stage1", "r2d-no-sampling"}
    told = {"dataset": "d", "base": "tiny", "rationale_source": "llm", "steps": 1, "method": "r2d-contrast"}
    ours, asked = parse_config(told, "x"), parse_config({**told, "layout": "two-prompt"}, "x")
    assert ours.one_pass and not asked.one_pass
    # Stage 1 of another layout is another one, though the stages are alike.
    first = parse_config({**told, "method": "r2d"}, "x").identity()
    assert asked.identity()["common"] == first["common"] != ours.identity()["common"]


def test_unknown_method() -> None:
    with pytest.raises(ConfigError, match="choose one of r2d, sft, dss"):
        method_named("R2D")
