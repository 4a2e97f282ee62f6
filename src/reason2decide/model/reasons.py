"""How reasons are written and checked: settings, and what a reason is. Pure values.

A reason supports its label if the bundle's reader of reasons (`reason_reader.py`) gives the label a probability that is
not below a threshold which at most one gold reason in twenty of the validation split falls under; of a record's own
choices, it does not if it names others only (`reason_checks.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from reason2decide.errors import ConfigError
from reason2decide.model.decision import Decision

Check = Literal["off", "flag", "defer"]
TEMPERATURE = 0.7  # ours: of the reasons drawn to choose from
MOST_LABELS = 8  # ours: labels a reason is read under, the most probable ones; bounds the time of large label sets
MOST_DRAWN = 64  # ours: bounds the time of a reason


@dataclass(frozen=True)
class ReasonSettings:
    """How reasons are written and checked. Guidance and drafts take time, so they are off by default; the check is not.

    Args:
        guidance: how strongly the reason is guided away from what it would be for the second choice; 0: not at all.
        best_of: number of reasons to write, of which the one with the highest label posterior given the reason is
            taken (`explaining.label_posteriors`).
        check_reasons: `flag` reasons that do not support the decision, where the model can tell; `defer` such decisions
            to a person besides; or `off`.

    Raises:
        ConfigError: an impossible value.
    """

    guidance: float = field(
        default=0.0,
        metadata={"help": "Guide reasons away from the second choice; 0 is off, 1 to 4 are usual.", "min": 0},
    )
    best_of: int = field(
        default=1,
        metadata={
            "help": "Number of reasons to write; the one that makes its label easiest to infer is returned.",
            "min": 1,
        },
    )
    check_reasons: Check = field(
        default="flag",
        metadata={"help": "Flag reasons that do not support the decision, defer such decisions to a person, or off."},
    )

    def __post_init__(self) -> None:
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ConfigError(f"guidance is {self.guidance}; expected a number of at least 0")
        if not 1 <= self.best_of <= MOST_DRAWN:
            raise ConfigError(f"best_of is {self.best_of}; expected a whole number from 1 to {MOST_DRAWN}")
        if self.check_reasons not in get_args(Check):
            raise ConfigError(f"check_reasons is {self.check_reasons!r}; expected one of {', '.join(get_args(Check))}")

    @property
    def reasons(self) -> ReasonSettings:
        """These settings alone, of a class that has more."""
        return ReasonSettings(self.guidance, self.best_of, self.check_reasons)

    def reviewed(self, decision: Decision, reason: Reason | None) -> Decision:
        """The decision, left to a person if its reason does not support it and the settings say so."""
        deferred = self.check_reasons == "defer" and reason is not None and reason.supports is False
        return replace(decision, deferred=True) if deferred else decision


PLAIN = ReasonSettings()


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason written for a label.

    `support` is the probability that it argues for the label, `supports` whether that reaches the threshold; None where
    reasons are not checked.
    """

    text: str
    support: float | None = None
    supports: bool | None = None
