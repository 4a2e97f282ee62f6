"""Texts by key, in a temporary file of the system, so that memory does not grow with their number."""

from __future__ import annotations

import sqlite3


class DiskIndex:
    """A dictionary of texts that lies on the disk; it is gone with the object.

    Small ones stay in memory, as SQLite keeps a file's pages there until they are too many.

    Example:
        >>> index = DiskIndex()
        >>> index.add("r1", "train"), index.add("r1", "test"), index.get("r1"), index.get("r2")
        (True, False, 'train', None)
    """

    def __init__(self) -> None:
        self._file = sqlite3.connect("", check_same_thread=False)  # a private file without a name
        # What a crash leaves is of no use.
        self._file.execute("PRAGMA journal_mode = OFF")
        self._file.execute("PRAGMA synchronous = OFF")
        self._file.execute("CREATE TABLE texts (key BLOB PRIMARY KEY, text BLOB) WITHOUT ROWID")
        self._file.isolation_level = None

    def add(self, key: str, text: str = "") -> bool:
        """Add a text; False, and nothing is changed, if the key is there already."""
        values = (key.encode("utf-8", "surrogatepass"), text.encode("utf-8", "surrogatepass"))
        return self._file.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", values).rowcount > 0

    def get(self, key: str) -> str | None:
        """The text of a key, None if there is none."""
        found = self._file.execute("SELECT text FROM texts WHERE key = ?", (key.encode("utf-8", "surrogatepass"),))
        row = found.fetchone()
        return None if row is None else bytes(row[0]).decode("utf-8", "surrogatepass")
