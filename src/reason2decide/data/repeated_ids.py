"""Find repeated ids among any number of rows, in bounded memory."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

BUCKETS = 64  # ours: of ten million ids a bucket then holds 4 MB
ENTRY = np.dtype([("id", "S16"), ("row", "<i8")])


class RepeatedIds:
    """Collects ids as hashes in files on the disk, by their first byte; only one file at a time is sorted in memory.

    Hashes are of 128 bits: among 10^10 ids, two that differ share one with a probability under 10^-18.

    Example:
        with RepeatedIds() as ids:
            for row, id in enumerate(found):
                ids.add(id, row)
            for first, again in ids.pairs(): ...
    """

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._files: list[Any] = []

    def __enter__(self) -> RepeatedIds:
        self._files = [self._open.enter_context(tempfile.TemporaryFile()) for _ in range(BUCKETS)]  # noqa: SIM115
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, id: str, row: int) -> None:
        """Count an id, and the number of the row that has it."""
        digest = hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        self._files[digest[0] % BUCKETS].write(digest + row.to_bytes(8, "little"))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Each row whose id a row before it has: the nearest of those, and the row, bucket by bucket."""
        for file in self._files:
            file.seek(0)
            entries = np.frombuffer(file.read(), ENTRY)
            entries = entries[np.lexsort((entries["row"], entries["id"]))]
            for index in np.flatnonzero(entries["id"][1:] == entries["id"][:-1]):
                yield int(entries["row"][index]), int(entries["row"][index + 1])
