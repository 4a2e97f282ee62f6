"""Settings for language models that the command line shows; importing them is fast."""

from __future__ import annotations

from dataclasses import dataclass

from reason2decide.errors import UserError


@dataclass(frozen=True)
class Limits:
    """The limits that a client observes; times are in seconds.

    `read_timeout` is the longest silence, `deadline` the longest time for a call from its first request, retries
    included; waiting for the per-minute limits does not count. `backoff` is the first delay between attempts.
    All defaults are ours; a small server batches 16 concurrent calls well.
    """

    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    read_timeout: float = 60.0
    deadline: float = 300.0
    attempts: int = 5
    backoff: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value <= 0:
                raise UserError(f"the limit {name} is {value}; it must be above 0")


MAX_WORDS = 150  # ours: the 256 tokens of a student (the authors' limit for rationales) are about 180 English words
