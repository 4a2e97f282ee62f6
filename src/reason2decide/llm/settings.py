"""Settings of the use of language models that the command line shows; it imports nothing that is slow."""

from __future__ import annotations

from dataclasses import dataclass

from reason2decide.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What a client keeps to; seconds where it is time.

    `read_timeout` is the longest silence, `deadline` the longest a call may take from its first request on, its
    retries included; waiting for the limits a minute does not count. `backoff` is the first delay between attempts.
    All defaults are ours; 16 calls at once are what a small server batches well.
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


MAX_WORDS = 150  # ours: a student's 256 tokens (the authors' limit for rationales) are about 180 English words
