"""What a comparison says, in a sentence for each system, and which metrics say the same as another."""

from __future__ import annotations

from collections.abc import Sequence

from reason2decide.evaluation.comparison import LEVEL, Comparison, Difference
from reason2decide.report.metric_views import direction_of, group_names, number, title_of

DIGITS = 9  # of values that are compared: the same sums in another order differ in the last ones


def verdicts(comparison: Comparison) -> dict[str, str]:
    """A sentence for each system but the reference, on the metrics that were tested.

    Example: "better in Macro-F1 by 0.070 [0.020, 0.120], corrected p 0.010; no difference seen in Under-triage".
    """
    tested: dict[str, list[Difference]] = {name: [] for name in comparison.values if name != comparison.reference}
    for change in comparison.differences:
        if change.metric in comparison.primary:
            tested[change.system].append(change)
    return {system: _sentence(changes) for system, changes in tested.items()}


def _sentence(changes: Sequence[Difference]) -> str:
    shown = [change for change in changes if change.p_holm is not None and change.p_holm < LEVEL]
    better, worse = (
        [change for change in shown if change.difference * direction_of(change.metric) * sign > 0] for sign in (1, -1)
    )
    parts = [f"better in {_by(better)}"] * bool(better) + [f"worse in {_by(worse)}"] * bool(worse)
    unseen = [title_of(change.metric) for change in changes if change not in shown]
    parts += [f"no difference seen in {' and '.join(unseen)}"] * bool(unseen)
    return "; ".join(parts) or "nothing was tested"


def _by(changes: Sequence[Difference]) -> str:
    return " and ".join(
        f"{title_of(change.metric)} by {number(change.metric, abs(change.difference))} "
        f"[{', '.join(_ends(change))}], corrected p {_p(change.p_holm)}"
        for change in changes
    )


def _ends(change: Difference) -> list[str]:
    """The ends of the interval, in the direction that the sentence names."""
    ends = sorted((change.low, change.high) if change.difference > 0 else (-change.high, -change.low))
    return [number(change.metric, end) for end in ends]


def _p(p: float | None) -> str:
    return "below 0.001" if p is None or p < 0.001 else f"{p:.3f}"


def twins(comparison: Comparison) -> dict[str, list[str]]:
    """Each metric to show, with those after it that have the same values for every system.

    Micro-F1 is accuracy where each record has one label; metrics of masked rationales are those of whole ones where
    there is nothing to mask. They stand in the same group, so that figures that are equal by chance stay apart.
    """
    by_system = comparison.values.values()
    names = dict.fromkeys(name for values in by_system for name in values)
    first_of: dict[tuple[object, ...], str] = {}
    found: dict[str, list[str]] = {}
    for group, members in group_names(names).items():
        for name in members:
            known = [values.get(name) for values in by_system]
            # Not their intervals: resamples of other statistics are drawn otherwise.
            key = [v and (v.n, *(round(seed, DIGITS) for seed in v.seeds)) for v in known]
            first = first_of.setdefault((group, *key), name)
            found.setdefault(first, []).extend([name] if name != first else [])
    return found
