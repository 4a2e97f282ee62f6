"""Draws that depend on a record's id alone: the same ones in any order of a file (ours)."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable

from reason2decide.data.records import Record


def id_hash(record_id: str) -> bytes:
    """The key by which to choose some of many records."""
    return hashlib.blake2b(record_id.encode(), digest_size=8).digest()


def some_explained(records: Iterable[Record], source: str, most: int) -> list[Record]:
    """At most `most` records with a gold rationale of `source`: those with the lowest hashes of their ids."""
    return some((record for record in records if record.rationales.get(source, "").strip()), most)


def some(records: Iterable[Record], most: int) -> list[Record]:
    """At most `most` records: those with the lowest hashes of their ids."""
    return heapq.nsmallest(most, records, key=lambda record: id_hash(record.id))


def draw(seed: int, what: str, record_id: str) -> float:
    """A number in [0, 1) that depends only on the arguments."""
    digest = hashlib.blake2b(f"{seed}/{what}/{record_id}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56
