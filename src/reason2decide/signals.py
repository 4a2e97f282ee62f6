"""Signals that ask training to stop: it finishes its step, saves, and says how to resume."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from reason2decide.errors import Interrupted

ASKED_TO_STOP = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Within this context the first Ctrl-C or SIGTERM is only recorded; a second one takes effect."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            for number in ASKED_TO_STOP:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def heed(self, where: str) -> None:
        """From here on a signal takes effect at once; raise `Interrupted` if one has come already."""
        self._restore()
        if self.received is not None:
            raise Interrupted(self.received, where)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
