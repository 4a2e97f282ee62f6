"""Divide records into train, validation and test: stratified by label, with whole groups, by seed and ids only."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from reason2decide.data.records import SPLITS, Record
from reason2decide.errors import DataError, UserError


class Member(NamedTuple):
    """What splitting needs to know about a record. Members of one `group` stay together."""

    id: str
    label: str
    group: str


def member(record: Record) -> Member:
    """Make a `Member` of a record; without a group, records of equal content form one.

    A text that occurs twice in the data therefore cannot be in both train and test.
    """
    assert record.label is not None
    group = f"group {record.group}" if record.group is not None else f"content {content_key(record)}"
    return Member(record.id, record.label, group)


def content_key(record: Record) -> str:
    """A digest of text and choices that ignores case and white space: records with equal keys are the same case."""
    content = "\n".join([record.text, *sorted(record.choices or ())])
    return hashlib.blake2b(" ".join(content.casefold().split()).encode(), digest_size=12).hexdigest()


def parse_shares(text: str) -> dict[str, float]:
    """Read shares such as `0.8,0.1,0.1` for train, validation and test.

    Raises:
        UserError: not three positive numbers that sum to 1.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != len(SPLITS) or not all(value > 0 for value in values) or not math.isclose(sum(values), 1):
        raise UserError(
            f"the shares are {text!r}; expected three positive numbers that sum to 1 for train, validation and test, "
            "such as 0.8,0.1,0.1"
        )
    return dict(zip(SPLITS, values, strict=True))


def split_records(members: Iterable[Member], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Assign each id to a split. The result depends on the seed, ids, labels and groups, not on the order of records.

    Groups are taken in an order drawn by the seed, and each goes to the split that lacks most of its labels and of
    records overall. Each split thus matches its share, per label and overall, to within about the size of a group;
    labels that occur once (open label sets) are spread by the overall share.

    Raises:
        DataError: a split would remain empty.
    """
    groups: dict[str, list[Member]] = defaultdict(list)
    for item in members:
        groups[item.group].append(item)

    def drawn(group: list[Member]) -> bytes:
        first = min(item.id for item in group)
        return hashlib.blake2b(f"{seed}\0{first}".encode(), digest_size=16).digest()

    names = list(shares)
    lacking: dict[str, list[float]] = defaultdict(
        lambda: [0.0] * len(names)
    )  # by label: share of records seen - assigned
    lacking_overall = [0.0] * len(names)
    assigned: dict[str, str] = {}
    for group in sorted(groups.values(), key=drawn):
        counts = Counter(item.label for item in group)
        for index, name in enumerate(names):
            for label, count in counts.items():
                lacking[label][index] += shares[name] * count
            lacking_overall[index] += shares[name] * len(group)
        needs = [
            sum(lacking[label][index] * count for label, count in sorted(counts.items())) / len(group)
            + lacking_overall[index]
            for index in range(len(names))
        ]
        chosen = needs.index(max(needs))
        for label, count in counts.items():
            lacking[label][chosen] -= count
        lacking_overall[chosen] -= len(group)
        assigned.update((item.id, names[chosen]) for item in group)
    for name in names:
        if name not in assigned.values():
            raise DataError(
                f"the split {name!r} got none of the {len(assigned)} records (in {len(groups)} groups); "
                "give more data or other shares with --split"
            )
    return assigned
