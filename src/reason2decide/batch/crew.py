"""Who decides the chunks of a batch: one small protocol for processes of this machine and for a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from reason2decide.batch.decider import Decider, Outcome
from reason2decide.batch.input import Chunk
from reason2decide.data.predictions import Undecided
from reason2decide.data.records import Record
from reason2decide.errors import Reason2DecideError, UserError

TRIES = 3  # ours: times that a chunk may end the worker that has it


@dataclass(frozen=True)
class DecidedChunk:
    """The outcomes of a chunk's rows, in order."""

    number: int
    outcomes: Sequence[Outcome]


@dataclass(frozen=True)
class LostChunk:
    """A chunk that ended every worker that had it."""

    number: int
    why: str


def answer(
    decider: Decider, rows: Sequence[Record | Undecided], on_progress: Callable[[int], None]
) -> Sequence[Outcome] | Reason2DecideError | str:
    """What a worker answers: the outcomes, why the model cannot be used, or the kind of an error nobody foresaw.

    Of the last its words are left out: they could hold health text.
    """
    try:
        return decider.outcomes(rows, on_progress)
    except Reason2DecideError as error:
        return sendable(error)
    except OSError:
        raise
    except Exception as error:
        return f"its worker failed with {type(error).__name__}"


def sendable(error: Reason2DecideError) -> Reason2DecideError:
    """An error that can be pickled, with the same words."""
    return (UserError if isinstance(error, UserError) else Reason2DecideError)(str(error))


class Crew(AbstractContextManager["Crew"], Protocol):
    """Workers that are ready within the context."""

    def decide(self, chunks: Iterator[Chunk], on_progress: Callable[[int], None]) -> Iterator[DecidedChunk | LostChunk]:
        """Decide chunks in any order; few are taken ahead, so that memory does not grow with their number.

        Args:
            on_progress: gets numbers of decided rows as they become known.

        Raises:
            Reason2DecideError: the model cannot be used.
        """
