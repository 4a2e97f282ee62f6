"""Settings for language models that the command line shows; importing them is fast."""

from __future__ import annotations

from dataclasses import dataclass

from reason2decide.errors import UserError


@dataclass(frozen=True)
class Limits:
    """The limits that a client observes; times are in seconds.

    `concurrency` is the most calls at once; a run starts with fewer (`concurrency.py`). `read_timeout` is the longest
    silence: answers are streamed, so it is the time between two tokens, or before the first. `deadline` is the longest
    time for a call from its first request, retries included; waiting for the per-minute limits does not count.
    `patience` is how long a server may load its model or be busy before its refusals count as failed attempts.
    `backoff` is the first delay between attempts. If the first `give_up_after` calls all fail in the same way, the
    rest is not sent. All defaults are ours; a small server batches 16 concurrent calls well.
    """

    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    read_timeout: float = 60.0
    deadline: float = 3600.0
    patience: float = 120.0
    attempts: int = 5
    backoff: float = 0.5
    give_up_after: int = 10

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value <= 0:
                raise UserError(f"the limit {name} is {value}; it must be above 0")


MAX_WORDS = 150  # ours: the 256 tokens of a student (the authors' limit for rationales) are about 180 English words
# Ours: of rationales known to be good, 1 % of those of the synthetic calls and of PubMedQA have less (docs/llm.md).
MIN_SUPPORT = 0.2
CHARACTERS_PER_WORD = 10  # ours: no language's rationale of so many words is longer, with the spaces


def max_characters(max_words: int) -> int:
    """The longest rationale of `max_words` words, for servers that can stop a model at a length."""
    return CHARACTERS_PER_WORD * max_words
