"""Which records each optimizer step learns from, cut into batches of similar lengths.

A plan is a function of (seed, epoch, lengths) alone, so that a restarted run takes the batches it would have taken,
and every process knows the batches of all others without asking.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reason2decide.errors import ConfigError

Rows = NDArray[np.integer[Any]]  # indices or lengths; plans keep int32, at four bytes a record
WINDOW_STEPS = 50  # ours: steps whose records are sorted by length together; more pads less and mixes less
ROUNDING = 16  # ours: prompts whose lengths differ by less stay shuffled


@dataclass(frozen=True)
class BatchLimit:
    """Maximum size of a batch, in records and, if given, in tokens with padding."""

    records: int
    tokens: int | None = None


@dataclass(frozen=True)
class _Epoch:
    order: Rows  # positions of records, similar lengths together
    bounds: Rows  # begin and end of each batch in `order`
    steps: Rows  # for each step its first batch


class BatchPlan:
    """The batches of every step.

    Each epoch takes every record once, in its own order, except the few that do not fill a step. A step has
    `batches_per_step` batches, divided among the processes. Records are sorted by length within windows of
    `WINDOW_STEPS` steps, and the steps of an epoch then shuffled.

    Args:
        rows: indices of the records to learn from.
        prompt_lengths, target_lengths: tokens of each record, (rows,).
        processes: `batches_per_step` is a multiple of it.
        name_of: the id of a record by index, for messages.

    Raises:
        ConfigError: fewer records than processes, or a record alone is over the limit of tokens.
    """

    def __init__(
        self,
        rows: Rows,
        prompt_lengths: Rows,
        target_lengths: Rows,
        limit: BatchLimit,
        *,
        batches_per_step: int,
        processes: int,
        seed: int,
        name_of: Callable[[int], str],
    ) -> None:
        if len(rows) < processes:
            raise ConfigError(
                f"{processes} processes cannot share {len(rows)} records to learn from; start at most {len(rows)}"
            )
        self.rows, self.prompts, self.targets = (
            numbers.astype(np.int32, copy=False) for numbers in (rows, prompt_lengths, target_lengths)
        )
        self.processes, self.seed = processes, seed
        # Every process needs a batch in every step, even if there are few records.
        self.limit = replace(limit, records=min(limit.records, len(rows) // processes))
        self._batches_per_step = batches_per_step
        if limit.tokens is not None:
            alone = prompt_lengths + target_lengths
            if alone.max() > limit.tokens:
                widest = int(np.argmax(alone))
                raise ConfigError(
                    f"batch_tokens = {limit.tokens} is smaller than one record: {name_of(int(rows[widest]))!r} takes "
                    f"{alone[widest]} tokens with its target; raise batch_tokens to at least {alone.max()}"
                )
        self._first_steps = [0]  # of each epoch known so far, and of the next
        self._current: tuple[int, _Epoch] | None = None

    def step(self, step: int) -> list[Rows]:
        """The batches of a step, counted from 0, as indices of records; process p of n takes those at [p::n]."""
        while step >= self._first_steps[-1]:
            epoch = len(self._first_steps) - 1
            self._first_steps.append(self._first_steps[-1] + len(self._epoch(epoch).steps))
        epoch = bisect_right(self._first_steps, step) - 1
        plan = self._epoch(epoch)
        first = plan.steps[step - self._first_steps[epoch]]
        cuts = plan.bounds[first : first + self._step_size(len(plan.bounds) - 1) + 1]
        return [self.rows[plan.order[begin:end]] for begin, end in pairwise(cuts)]

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first epoch; with a limit of tokens others may have a few more or less."""
        return len(self._epoch(0).steps)

    def _epoch(self, epoch: int) -> _Epoch:
        if self._current is None or self._current[0] != epoch:
            self._current = epoch, self._plan(np.random.default_rng([self.seed, epoch]))
        return self._current[1]

    def _plan(self, rng: np.random.Generator) -> _Epoch:
        order = rng.permutation(np.arange(len(self.rows), dtype=np.int32))
        if self.limit.tokens is None:
            # Left out before sorting, or it would always be the longest records.
            per_step = self.limit.records * self._step_size(len(order) // self.limit.records)
            order = order[: len(order) // per_step * per_step]
        else:
            per_step = max(1, round(self._batches_per_step * self.limit.tokens / (self.prompts + self.targets).mean()))
        window = WINDOW_STEPS * per_step
        for number, begin in enumerate(range(0, len(order), window)):
            part = order[begin : begin + window]
            # Ties stay shuffled: target lengths correlate with labels, and a batch of one label trains badly.
            part = part[np.argsort(self.prompts[part] // ROUNDING, kind="stable")]
            # Windows alternate between rising and falling, so a batch across a seam has similar lengths too.
            order[begin : begin + window] = part if number % 2 == 0 else part[::-1]
        bounds = cut(self.prompts[order], self.targets[order], self.limit)
        batches = len(bounds) - 1
        size = self._step_size(batches)
        left_out = batches % size
        first = int(rng.integers(left_out + 1))  # the batches left over are not always the last
        steps = first + size * rng.permutation(batches // size)
        return _Epoch(order, bounds, steps)

    def _step_size(self, batches: int) -> int:
        """Batches per step in an epoch of `batches`: as configured, or a whole small epoch; equal for all processes."""
        return max(1, min(self._batches_per_step, batches) // self.processes) * self.processes

    def widest(self) -> Rows:
        """The batch of the first epoch that takes the most tokens with padding, as indices of records."""
        plan = self._epoch(0)
        begins = plan.bounds[:-1]
        prompts = np.maximum.reduceat(self.prompts[plan.order], begins)
        targets = np.maximum.reduceat(self.targets[plan.order], begins)
        batch = int(np.argmax((prompts + targets) * np.diff(plan.bounds)))
        return self.rows[plan.order[plan.bounds[batch] : plan.bounds[batch + 1]]]


def cut(prompt_lengths: Rows, target_lengths: Rows, limit: BatchLimit) -> Rows:
    """Where to cut a sequence of records into batches within a limit: the start of each, and the end."""
    if limit.tokens is None:
        return np.append(np.arange(0, len(prompt_lengths), limit.records), len(prompt_lengths))
    bounds = [0]
    widest_prompt = widest_target = 0
    lengths = zip(prompt_lengths.tolist(), target_lengths.tolist(), strict=True)
    for position, (prompt, target) in enumerate(lengths):
        widest_prompt, widest_target = max(widest_prompt, prompt), max(widest_target, target)
        count = position - bounds[-1] + 1
        if position > bounds[-1] and (count > limit.records or count * (widest_prompt + widest_target) > limit.tokens):
            bounds.append(position)
            widest_prompt, widest_target = prompt, target
    return np.asarray([*bounds, len(prompt_lengths)])
