"""Bring lines with the same id together, among any number of them, in bounded memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from pathlib import Path
from types import TracebackType

HELD = 1 << 24  # ours: characters in memory before they are written


class IdBuckets:
    """Lines on the disk, in as many files as asked for, by a hash of their id: lines of one id are in one file.

    Example:
        with IdBuckets(64) as gold, IdBuckets(64) as decided:
            ...
            for bucket in range(64):
                compare(gold.read(bucket), decided.read(bucket))
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: defaultdict[int, list[str]] = defaultdict(list)
        self._held = 0

    def __enter__(self) -> IdBuckets:
        self._folder = tempfile.TemporaryDirectory(prefix="reason2decide-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def add(self, id: str, line: str) -> None:
        """Put a line without line breaks into the bucket of its id."""
        digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._waiting[int.from_bytes(digest, "big") % self._count].append(line)
        self._held += len(line)
        if self._held >= HELD:
            self._flush()

    def read(self, bucket: int) -> list[str]:
        """The lines of a bucket, in the order in which they came."""
        self._flush()
        path = self._path(bucket)
        return path.read_text("utf-8").split("\n")[:-1] if path.exists() else []

    def _flush(self) -> None:
        for bucket, lines in self._waiting.items():
            with self._path(bucket).open("a", encoding="utf-8", newline="\n") as stream:
                stream.writelines(f"{line}\n" for line in lines)
        self._waiting.clear()
        self._held = 0

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / str(bucket)
