"""Batch plans: whatever the lengths and limits, each record once an epoch, within the limit, always the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reason2decide.errors import ConfigError
from reason2decide.training.batches import BatchLimit, BatchPlan, cut


def plan(
    prompts: list[int], targets: list[int], limit: BatchLimit, per_step: int = 1, processes: int = 1, seed: int = 0
) -> BatchPlan:
    return BatchPlan(
        np.arange(len(prompts)) * 10,  # rows need not be 0, 1, 2, ...
        np.asarray(prompts),
        np.asarray(targets),
        limit,
        batches_per_step=per_step * processes,
        processes=processes,
        seed=seed,
        name_of=lambda row: f"record {row}",
    )


LENGTHS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=3, max_size=120)


@settings(max_examples=150, deadline=None)
@given(
    lengths=LENGTHS,
    records=st.integers(1, 12),
    tokens=st.none() | st.integers(80, 400),
    per_step=st.integers(1, 4),
    processes=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_any_plan(
    lengths: list[tuple[int, int]], records: int, tokens: int | None, per_step: int, processes: int, seed: int
) -> None:
    prompts, targets = [one for one, _ in lengths], [one for _, one in lengths]
    limit = BatchLimit(records if tokens is None else len(lengths), tokens)
    arguments = (prompts, targets, limit, per_step, processes, seed)
    made = plan(*arguments)
    steps = [made.step(step) for step in range(8)]
    for batches in steps:
        assert len(batches) % processes == 0 and 0 < len(batches) <= per_step * processes
        for batch in batches:
            assert len(batch) and len(batch) <= limit.records
            if tokens is not None:
                own = batch // 10
                assert len(own) * (np.take(prompts, own).max() + np.take(targets, own).max()) <= tokens
        rows = np.concatenate(batches)
        assert len(set(rows.tolist())) == len(rows)
    # A restarted run asks a fresh plan for a late step; so does another process.
    again = plan(*arguments)
    for step in (7, 2, 5):
        assert [batch.tolist() for batch in again.step(step)] == [batch.tolist() for batch in steps[step]]


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, records=st.integers(1, 5), seed=st.integers(0, 3))
def test_an_epoch_takes_each_record_once_but_for_less_than_a_step(
    lengths: list[tuple[int, int]], records: int, seed: int
) -> None:
    prompts, targets = [one for one, _ in lengths], [one for _, one in lengths]
    made = plan(prompts, targets, BatchLimit(records), seed=seed)
    per_epoch = len(lengths) // min(records, len(lengths))
    for epoch in range(2):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        seen = Counter(int(row) for step in steps for batch in made.step(step) for row in batch)
        assert set(seen.values()) == {1}
        assert len(lengths) - len(seen) < records


def test_layouts_share_the_records_of_a_step() -> None:
    """1 x 8, 8 x 1, 2 x 4, and two processes x 4 learn from the same records at each step."""
    rng = np.random.default_rng(0)
    prompts, targets = rng.integers(1, 60, 100).tolist(), rng.integers(1, 20, 100).tolist()
    layouts = [(1, 8, 1), (8, 1, 1), (2, 4, 1), (4, 1, 2)]
    plans = [plan(prompts, targets, BatchLimit(size), count, processes) for size, count, processes in layouts]
    for step in range(30):
        records = [sorted(np.concatenate(one.step(step)).tolist()) for one in plans]
        assert all(one == records[0] for one in records) and len(records[0]) == 8


def test_like_lengths_come_together_and_epochs_differ() -> None:
    prompts = np.random.default_rng(0).integers(10, 500, 4000).tolist()
    made = plan(prompts, [5] * 4000, BatchLimit(16))
    padding = [
        1 - np.take(prompts, b // 10).mean() / np.take(prompts, b // 10).max() for s in range(250) for b in made.step(s)
    ]
    shuffled = [1 - np.mean(prompts[i : i + 16]) / max(prompts[i : i + 16]) for i in range(0, 4000, 16)]
    assert np.mean(padding) < 0.1 < 0.4 < np.mean(shuffled)
    first_steps = [np.concatenate(made.step(step)).tolist() for step in (0, 250)]
    assert first_steps[0] != first_steps[1]


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="3 processes cannot share 2 records to learn from; start at most 2"):
        plan([5, 5], [1, 1], BatchLimit(1), processes=3)
    with pytest.raises(ConfigError, match=r"batch_tokens = 30 is smaller than one record: 'record 10' takes 40 tokens"):
        plan([5, 30, 9], [1, 10, 1], BatchLimit(3, 30))


def test_cut_by_hand() -> None:
    """Rows x (widest prompt + widest target): 2 x (3 + 1) = 8 fits, a third row of 4 + 2 would make 18."""
    bounds = cut(np.array([3, 3, 4, 4]), np.array([1, 1, 2, 1]), BatchLimit(10, 12))
    assert bounds.tolist() == [0, 2, 4]
    assert cut(np.arange(5), np.arange(5), BatchLimit(2)).tolist() == [0, 2, 4, 5]
    # A record wider than the limit stands alone: validation must not fail for it.
    assert cut(np.array([50, 3]), np.array([1, 1]), BatchLimit(10, 12)).tolist() == [0, 1, 2]
