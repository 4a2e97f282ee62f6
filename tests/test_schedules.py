"""alpha_t, pi_t and the draw of y~ against numbers derived by hand from the paper's definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reason2decide.method.methods import METHODS
from reason2decide.method.schedules import (
    alpha_at,
    confidence_gate,
    cycle_temperature_at,
    dropout_seed,
    gate_threshold,
    learning_rate_at,
    sampling_probability_at,
    takes_part,
    takes_predicted_label,
    uniform_draw,
)

STAGE2 = METHODS["r2d"].stages[1]


def test_alpha_of_the_paper_over_1000_steps() -> None:
    """5 % of 1,000 steps warm up: 0 at the start, 0.7 · 25/50 half way, 0.7 from step 50 on."""
    warmup = STAGE2.warmup_steps(1000)
    assert warmup == 50
    found = [alpha_at(step, alpha=STAGE2.alpha, warmup_steps=warmup) for step in (0, 25, 50, 999)]
    assert found == pytest.approx([0.0, 0.35, 0.7, 0.7])


def test_the_learning_rate_rises_and_falls_in_straight_lines() -> None:
    found = [learning_rate_at(step, peak=0.8, warmup_steps=4, steps=12) for step in (0, 1, 4, 8, 11, 12)]
    assert found == pytest.approx([0.0, 0.2, 0.8, 0.4, 0.1, 0.0])


def test_each_step_of_each_process_drops_otherwise() -> None:
    asked = [(seed, stage, step, rank) for seed in (0, 1) for stage in ("a", "b") for step in (0, 1) for rank in (0, 1)]
    assert len({dropout_seed(*own) for own in asked}) == 16 and dropout_seed(0, "a", 1, 0) == dropout_seed(0, "a", 1, 0)


def test_sampling_probability_of_the_paper_over_1000_steps() -> None:
    """0 up to step 50, then (step - 50) / 600, cut at 0.9, which is reached at step 50 + 540."""
    warmup, ramp = STAGE2.warmup_steps(1000), STAGE2.ramp_steps(1000)
    assert ramp == 600

    def pi(step: int) -> float:
        return sampling_probability_at(step, cap=STAGE2.sampling_cap, warmup_steps=warmup, ramp_steps=ramp)

    assert [pi(step) for step in (0, 49, 50, 200, 350, 589)] == pytest.approx([0, 0, 0, 0.25, 0.5, 539 / 600])
    assert pi(590) == pi(650) == pi(999) == 0.9


def test_limit_cases() -> None:
    assert alpha_at(0, alpha=0.5, warmup_steps=0) == 0.5
    assert sampling_probability_at(0, cap=0.9, warmup_steps=0, ramp_steps=0) == 0.9
    assert sampling_probability_at(10**9, cap=0.0, warmup_steps=0, ramp_steps=0) == 0.0
    assert not takes_predicted_label(0.0, 1, 2, "a")
    assert takes_predicted_label(1.0, 1, 2, "a")


@given(
    st.integers(0, 10_000),
    st.floats(0, 1),
    st.integers(0, 5_000),
    st.integers(0, 5_000),
)
def test_schedules_rise_and_stay_in_bounds(step: int, cap: float, warmup: int, ramp: int) -> None:
    def pi(step: int) -> float:
        return sampling_probability_at(step, cap=cap, warmup_steps=warmup, ramp_steps=ramp)

    assert 0 <= pi(step) <= pi(step + 1) <= cap
    assert 0 <= alpha_at(step, alpha=cap, warmup_steps=warmup) <= alpha_at(step + 1, alpha=cap, warmup_steps=warmup)


def test_draw_depends_on_seed_step_and_record_alone() -> None:
    """The numbers are part of the contract: a change would make restarted runs draw differently."""
    assert uniform_draw(0, 0, "a") == pytest.approx(DRAW_0_0_A, abs=1e-12)
    assert len({uniform_draw(seed, step, id) for seed in (0, 1) for step in (0, 1) for id in "ab"}) == 8


def test_the_gate_of_reason2decide_c() -> None:
    """sigmoid(0) = 1/2, sigmoid(10 · 0.2) = 1 / (1 + e^-2)."""
    assert confidence_gate(0.6, 0.6) == 0.5
    assert confidence_gate(0.8, 0.6) == pytest.approx(1 / (1 + np.exp(-2)))


def test_thresholds_by_hand() -> None:
    """Of one confidence c: sigmoid(10 (c - t)) = pi, so t = c - ln(pi / (1 - pi)) / 10."""
    for pi in (0.1, 0.5, 0.9):
        found = gate_threshold(pi, np.array([0.7]), np.array([3.0]))
        assert found == pytest.approx(0.7 - np.log(pi / (1 - pi)) / 10)


@given(
    st.floats(0.001, 0.999),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50)), min_size=1, max_size=20),
)
def test_the_gate_shows_the_intended_share(pi: float, seen: list[tuple[float, int]]) -> None:
    confidences, weights = (np.array(column, float) for column in zip(*seen, strict=True))
    gates = confidence_gate(confidences, gate_threshold(pi, confidences, weights))
    assert np.average(gates, weights=weights) == pytest.approx(pi, abs=1e-6)
    assert (np.diff(gates[np.argsort(confidences)]) >= 0).all()


def test_the_temperature_of_the_cycle() -> None:
    """1 until the warm-up has ended, sqrt(1/2) half way, 1/2 at the end."""
    found = [cycle_temperature_at(step, warmup_steps=100, steps=1100) for step in (0, 100, 600, 1100, 2000)]
    assert found == pytest.approx([1, 1, 0.5**0.5, 0.5, 0.5])


def test_the_posterior_is_drawn_apart_from_the_label() -> None:
    """Half of the records that are shown y^, and half of the others, within five standard errors."""
    draws = [
        (takes_predicted_label(0.5, 0, s, f"{i}"), takes_part("posterior", 0.5, 0, s, f"{i}"))
        for s in range(50)
        for i in range(80)
    ]
    for shown in (True, False):
        own = [posterior for drawn, posterior in draws if drawn == shown]
        assert abs(sum(own) / len(own) - 0.5) < 5 * (0.25 / len(own)) ** 0.5


def test_draws_are_uniform() -> None:
    """Of 10,000 draws a share p falls under p, within five standard errors."""
    draws = [uniform_draw(7, step, f"record-{record}") for step in range(100) for record in range(100)]
    for p in (0.1, 0.5, 0.9):
        share = sum(draw < p for draw in draws) / len(draws)
        assert abs(share - p) < 5 * (p * (1 - p) / len(draws)) ** 0.5


# blake2b("0/0/a", 8 bytes) as a big-endian fraction of 2^64, computed with coreutils: printf 0/0/a | b2sum -l 64
DRAW_0_0_A = 0x8C2EF788313B597A / 2**64
