"""Bring lines with the same id together, among any number of them, in bounded memory."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

HELD = 1 << 24  # ours: characters in memory before they are written


class IdBuckets:
    """Lines on the disk, in as many files as asked for, by a hash of their id: lines of one id are in one file.

    Example:
        gold, decided = IdBuckets(folder / "gold", 64), IdBuckets(folder / "decided", 64)
        ...
        for bucket in range(64):
            compare(gold.read(bucket), decided.read(bucket))

    Args:
        folder: made for them.
        count: number of buckets.
    """

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir()
        self._folder, self.count = folder, count
        self._waiting: defaultdict[int, list[str]] = defaultdict(list)
        self._held = 0

    def add(self, id: str, line: str) -> None:
        """Put a line without line breaks into the bucket of its id."""
        digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._waiting[int.from_bytes(digest, "big") % self.count].append(line)
        self._held += len(line)
        if self._held >= HELD:
            self.flush()

    def flush(self) -> None:
        """Write what is still in memory."""
        for bucket, lines in self._waiting.items():
            with self._path(bucket).open("a", encoding="utf-8", newline="\n") as stream:
                stream.writelines(f"{line}\n" for line in lines)
        self._waiting.clear()
        self._held = 0

    def read(self, bucket: int) -> list[str]:
        """The lines of a bucket that are written, in the order in which they came."""
        path = self._path(bucket)
        return path.read_text("utf-8").split("\n")[:-1] if path.exists() else []

    def _path(self, bucket: int) -> Path:
        return self._folder / str(bucket)
