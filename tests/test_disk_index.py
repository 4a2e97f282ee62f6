"""Texts by key on the disk: a dictionary, whatever their number, and a full disk is said."""

from __future__ import annotations

import doctest
import sqlite3
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reason2decide.data import disk_index
from reason2decide.data.disk_index import DiskIndex
from reason2decide.files import means_full_disk


@given(st.lists(st.tuples(st.text(), st.text()), max_size=40), st.lists(st.text(), max_size=5))
def test_it_is_a_dictionary_that_keeps_what_came_first(added: list[tuple[str, str]], asked: list[str]) -> None:
    index, expected = DiskIndex(), dict[str, str]()
    for key, text in added:
        assert index.add(key, text) == (key not in expected)
        expected.setdefault(key, text)
    for key in [*expected, *asked, "\ud800"]:
        assert index.get(key) == expected.get(key)


def test_its_example() -> None:
    assert doctest.testmod(disk_index).failed == 0


def test_memory_does_not_grow_with_its_texts() -> None:
    index = DiskIndex()
    tracemalloc.start()
    for number in range(20_000):
        index.add(f"key {number}", "word " * 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000 and index.get("key 19999") == "word " * 20


def test_a_full_disk_is_one_to_the_command_line() -> None:
    """SQLite has an error of its own for it."""
    file = sqlite3.connect("")
    file.execute("CREATE TABLE t (x)")
    file.execute("PRAGMA max_page_count = 3")
    with pytest.raises(sqlite3.OperationalError) as full:
        file.executemany("INSERT INTO t VALUES (?)", [("x" * 5000,)] * 10)
    assert means_full_disk(full.value)
