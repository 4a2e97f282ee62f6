"""Find near duplicates in linear time: MinHash of word 5-grams (Broder 1997), candidates by bands.

The bands are those of Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from reason2decide.data.records import Record

THRESHOLD = 0.8  # ours: estimated Jaccard similarity of word 5-grams from which two texts count as near duplicates
WORDS = 5
BANDS, ROWS = 16, 4  # a pair of similarity 0.8 shares a band with probability 1 - (1 - 0.8^4)^16 = 0.9998
MOST_CANDIDATES = 64  # ours: compared per band, so that texts from one template cannot make the time quadratic
_random = np.random.default_rng(0)
_FACTORS = _random.integers(0, 1 << 63, (BANDS * ROWS, 1), np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _random.integers(0, 1 << 63, (BANDS * ROWS, 1), np.uint64)
_POSITIONS = _random.integers(0, 1 << 63, WORDS, np.uint64) * np.uint64(2) + np.uint64(1)


def signature(text: str) -> NDArray[np.uint32]:
    """Compute 64 minima; the share equal in two texts estimates the Jaccard similarity of their word 5-grams."""
    words = re.findall(r"\w+", text.casefold()) or [""]
    hashes = np.array([zlib.crc32(word.encode()) for word in words], np.uint64)
    width = min(WORDS, len(hashes))
    grams = len(hashes) - width + 1
    mixed = hashes[:grams] * _POSITIONS[0]
    for place in range(1, width):
        mixed += hashes[place : place + grams] * _POSITIONS[place]
    mixed ^= mixed >> np.uint64(29)
    minima: NDArray[np.uint32] = ((_FACTORS * mixed + _OFFSETS) >> np.uint64(32)).min(axis=1).astype(np.uint32)
    return minima


class NearDuplicates:
    """Records of test and validation, and which of them have a near duplicate in a split read later."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], dict[str, str]] = {}  # (split, later split): id -> id
        self._kept: list[tuple[str, str]] = []
        self._signatures: list[NDArray[np.uint32]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def compare(self, split: str, id: str, minima: NDArray[np.uint32], *, keep: bool) -> bool:
        """Note which kept records of other splits this one nearly duplicates; return whether there are any.

        Args:
            minima: its `signature_of`.
            keep: whether later records are compared with it.
        """
        keys = _keys(minima)
        like = False
        for index in sorted({index for key in keys for index in self._bands.get(key, ())}):
            first, id_ = self._kept[index]
            if first != split and np.count_nonzero(self._signatures[index] == minima) >= THRESHOLD * len(minima):
                like = True
                self.found.setdefault((first, split), {}).setdefault(id_, id)
        if keep:
            for key in keys:
                if len(self._bands[key]) < MOST_CANDIDATES:
                    self._bands[key].append(len(self._kept))
            self._kept.append((split, id))
            self._signatures.append(minima)
        return like


def _keys(minima: NDArray[np.uint32]) -> list[tuple[int, bytes]]:
    return [(band, minima[band * ROWS : (band + 1) * ROWS].tobytes()) for band in range(BANDS)]


def signature_of(record: Record) -> NDArray[np.uint32]:
    """The signature of a record's text and choices."""
    return signature("\n".join([record.text, *(record.choices or ())]))
