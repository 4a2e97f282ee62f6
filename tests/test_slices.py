"""Slicing: what a column's values become, and which columns are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reason2decide.data.records import Record
from reason2decide.errors import DataError
from reason2decide.evaluation.slices import MAX_VALUES, Column, slice_records


def records(values, key="column"):
    return [Record(str(i), "a b c", meta={} if value is None else {key: value}) for i, value in enumerate(values)]


def sliced(values, text="column"):
    return {
        name: np.flatnonzero(mask).tolist() for name, mask in slice_records(records(values), Column.parse(text)).items()
    }


def test_words_keep_their_values_in_natural_order():
    assert sliced(["ward 10", "ward 2", None, "ward 10"]) == {"ward 2": [1], "ward 10": [0, 3], "not given": [2]}
    assert sliced([True, False, True]) == {"False": [1], "True": [0, 2]}


def test_few_numbers_are_values_and_many_are_bands():
    assert sliced([3, 1, 3]) == {"1": [1], "3": [0, 2]}
    found = sliced(list(range(40)))
    assert [len(own) for own in found.values()] == [10, 10, 10, 10]
    assert next(iter(found)) == "under 10" and list(found)[-1] == "30 and over"


def test_edges_of_ones_own():
    assert sliced([5, 18, 64, 65, None], "column:18,65") == {
        "under 18": [0],
        "18 to under 65": [1, 2],
        "65 and over": [3],
        "not given": [4],
    }


def test_numbers_written_in_a_table_are_numbers():
    """Every column of a CSV file is text."""
    assert sliced(["5", "18", " 64 ", "", None], "column:18,65") == {
        "under 18": [0],
        "18 to under 65": [1, 2],
        "not given": [3, 4],
    }
    assert sliced(["5", "18"], "column:18") == {"under 18": [0], "18 and over": [1]}
    assert sliced(["1.5", "2", "1.50"]) == {"1.5": [0, 2], "2": [1]}
    assert sliced(["2", "10", "5 mo"]) == {"2": [0], "5 mo": [2], "10": [1]}
    with pytest.raises(DataError, match="contains words"):
        sliced(["2", "10", "5 mo"], "column:3")
    assert sliced(["1e400", "nan", "inf"]) == {"1e400": [0], "inf": [2], "nan": [1]}


def test_values_that_differ_stay_apart():
    sites = sliced([1000001.0, 1000002.0, 1000001.0])
    assert sites == {"1000001": [0, 2], "1000002": [1]}
    assert sliced(["007", "7"]) == {"007": [0], "7": [1]}
    assert sliced(["day \u00b2", "day 2"]) == {"day 2": [1], "day \u00b2": [0]}
    days = [20190100 + day for day in range(1, 29)] * 3
    bands = sliced(days)
    assert [len(band) for band in bands.values()] == [21] * 4 and next(iter(bands)) == "under 20190108"


def test_blank_words_are_not_given():
    """As an import keeps the empty cells of a CSV file."""
    assert sliced(["F", "", " ", None, "M"]) == {"F": [0], "M": [4], "not given": [1, 2, 3]}


def test_rare_words_are_taken_together():
    found = sliced([f"w{i}" for i in range(MAX_VALUES + 5)] + ["w0"])
    assert len(found) == MAX_VALUES + 1 and len(found["other"]) == 5


def test_length_is_a_column_of_every_dataset():
    assert list(slice_records(records([None, None]), Column("length"))) == ["3"]


@given(st.lists(st.one_of(st.none(), st.integers(-50, 50), st.floats(-1e6, 1e6)), min_size=1, max_size=60))
def test_slices_of_numbers_are_a_partition(values):
    if all(value is None for value in values):
        return
    masks = np.array(list(slice_records(records(values), Column("column")).values()))
    assert (masks.sum(0) == 1).all() and masks.any(1).all()


@pytest.mark.parametrize(
    ("values", "text", "message"),
    [
        (["a"], "ward", "no record has a column 'ward'.*choose from column, length"),
        ([["a"]], "column", "contains lists or objects"),
        (["a"], "column:3", "contains words, so it has no bands"),
        ([1], "column:3,x", "with numbers"),
        ([1], "column:3,2", "must increase"),
        ([1], "column:nan", "must increase"),
    ],
)
def test_what_cannot_be_sliced_is_refused(values, text, message):
    with pytest.raises(DataError, match=message):
        sliced(values, text)
