"""The most memory that a process holds for itself: pages of mapped files, which the system takes back, do not count."""

from __future__ import annotations

import os
import threading
from pathlib import Path


class Peak:
    """Looks at the anonymous memory of a process and of its children ten times a second (Linux).

    Example:
        with Peak() as peak:
            work()
        print(peak.megabytes)
    """

    def __init__(self, process: int | None = None) -> None:
        self._process = process or os.getpid()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.megabytes = 0
        self.of_children = 0

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self.megabytes = max(self.megabytes, _anonymous(self._process))
            try:
                children = Path(f"/proc/{self._process}/task/{self._process}/children").read_text().split()
            except OSError:
                children = []
            self.of_children = max([self.of_children, *(_anonymous(int(child)) for child in children)])


def _anonymous(process: int) -> int:
    """Megabytes of a process's own pages now; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon")), 0)
