"""Messages and progress: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import codecs
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

T = TypeVar("T")
PLAIN_EVERY_SECONDS = 10.0  # ours: often enough to show activity, rare enough for a log file

stderr = Console(stderr=True, highlight=False)


@dataclass
class _Settings:
    quiet: bool = False


_settings = _Settings()


def set_quiet(quiet: bool) -> None:
    """Silence everything but results and errors (the command line's `--quiet`)."""
    _settings.quiet = quiet


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with control and direction characters written out: data must not move the cursor or hide a line."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def show(text: str = "") -> None:
    """Print a result on standard output."""
    print(visible(text))


def visible_json(line: str) -> str:
    """A line of JSON with such characters, and those that standard output cannot write, as JSON escapes: the same value
    for whoever parses it."""
    line = _CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", line)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return line.encode(encoding, "json_escape").decode(encoding) if not is_utf8(encoding) else line


def is_utf8(encoding: str) -> bool:
    """Whether an encoding can write every character."""
    return codecs.lookup(encoding).name == "utf-8"


def _json_escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error("json_escape", _json_escape)


def say(message: str) -> None:
    """Print one line for the user on standard error, unless quiet."""
    if not _settings.quiet:
        stderr.print(visible(message), markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning on standard error, quiet or not."""
    stderr.print(f"warning: {visible(message)}", markup=False, soft_wrap=True, style="yellow")


class ProgressBar:
    """A bar with rate and time left in a terminal, a plain line every ten seconds elsewhere, nothing when quiet.

    `done` units were finished earlier: they are shown as done, but do not count towards rate and time left.
    """

    def __init__(self, description: str, total: int | None, unit: str = "records", done: int = 0) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = self._done_before = done
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        if not _settings.quiet and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=stderr,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, completed=self.done, rate="", note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units as done; `note` is shown at the end of the line."""
        self.done += count
        now = time.monotonic()
        rate = (self.done - self._done_before) / max(now - self._started, 1e-9)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, rate=f"{rate:.1f} {self.unit}/s", note=note)
        elif now - self._last_line >= PLAIN_EVERY_SECONDS:
            self._last_line = now
            of = f"/{self.total}" if self.total else ""
            left = f", {(self.total - self.done) / rate:.0f} s left" if self.total and rate else ""
            say(f"{self.description}: {self.done}{of} {self.unit}, {rate:.1f}/s{left}{' · ' + note if note else ''}")


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "records") -> Iterator[T]:
    """Yield `items` while showing how many are done."""
    with ProgressBar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()
