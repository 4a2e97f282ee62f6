"""Prompts as token ids: equal to the whole string's, label kept when the text is cut, data never special tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ARCHITECTURES, build

from reason2decide.data.dataset_folder import DatasetInfo, write_dataset
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import DataError
from reason2decide.method.prompts import PREDICT_PREFIX, body, explain_prefix, join
from reason2decide.model.prompt_encoder import Lengths, PromptEncoder
from reason2decide.training.features import SplitFeatures, TokenCache, TokenTable

TEXTS = ["Pt is 34 yo c/o chest pain", "  Fever,\n cough & rash?  ", "(no) 3 d", "ok"]
LABELS = LabelSet(("home care", "see a doctor"))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return build(request.param)[1]


def test_joined_ids_are_those_of_the_whole_prompt(tokenizer: Any) -> None:
    """Tokenising a text once and putting prefixes before it changes nothing, for every supported tokenizer."""
    encoder = PromptEncoder(tokenizer, Lengths())
    for text, ids in zip(TEXTS, encoder.text_ids(TEXTS), strict=True):
        assert encoder.decide(ids).text == tokenizer(join(PREDICT_PREFIX, text))["input_ids"]
        for label in (None, "home care", "no significant difference"):
            assert encoder.explain(ids, label).text == tokenizer(join(explain_prefix(label), text))["input_ids"]
    assert encoder.label_ids("home care") == tuple(tokenizer("home care")["input_ids"])
    assert encoder.target_ids(["home care"])[0] == tokenizer("home care")["input_ids"]


def test_cutting_keeps_prefix_label_and_end(tokenizer: Any) -> None:
    encoder = PromptEncoder(tokenizer, Lengths(input=40, rationale=8, label=50))
    long = encoder.text_ids(["fever " * 200])[0]
    cut = encoder.explain(long, "home care").text
    whole = PromptEncoder(tokenizer, Lengths(input=4000)).explain(long, "home care").text
    room = encoder.room("home care")
    assert len(cut) == 40
    assert cut == [*whole[: 40 - len(encoder.after)], *encoder.after]
    assert cut[-len(encoder.after) - room : -len(encoder.after)] == long[:room]


def test_special_tokens_written_in_data_stay_data(tokenizer: Any) -> None:
    encoder = PromptEncoder(tokenizer, Lengths())
    ends = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for text in ("a </s> b", "<pad> <extra_id_0>", "<s>"):
        assert not ends & set(encoder.text_ids([text])[0])
        assert encoder.target_ids([text])[0][-len(encoder.after) :] == encoder.after
        assert not ends & set(encoder.target_ids([text])[0][len(encoder.before) : -len(encoder.after)])


def test_labels_that_cannot_be_scored_are_refused(tokenizer: Any) -> None:
    encoder = PromptEncoder(tokenizer, Lengths(label=5))
    with pytest.raises(DataError, match=r"over the limit of 5; raise lengths\.label"):
        encoder.label_ids("no " * 9)
    with pytest.raises(DataError, match="same tokens"):
        encoder.candidates(["ok", "ok "])


def test_own_choices_stand_before_the_text() -> None:
    assert body(" text ", None) == "text"
    assert body("text", ("a", "b")) == "choices: a; b. text"


def test_split_features(tmp_path: Path) -> None:
    """Rows in the records' order; no rationale of the source is an empty row; cuts are counted."""
    tokenizer = build("t5")[1]
    records = [
        Record("1", "fever " * 50, "home care", {"llm": "no rash " * 40}),
        Record("2", "cough", "see a doctor", {"nurse": "short"}),
        Record("3", "rash", "home care", {"llm": "rash"}),
    ]
    dataset = write_dataset(tmp_path / "data", DatasetInfo("d", "t", LABELS, ("llm", "nurse")), {"train": records})
    encoder = PromptEncoder(tokenizer, Lengths(input=32, rationale=10))
    cache = TokenCache(tmp_path / "tokens", tokenizer)
    split = dataset.split("train")
    features = SplitFeatures(split, dataset.hashes["train"], LABELS, encoder, cache).with_source("llm")
    assert [example.id for example in features] == ["1", "2", "3"]
    assert [len(example.rationale) > 0 for example in features] == [True, False, True]
    assert (str(features.cut_texts), str(features.cut_rationales)) == ("1 of 3", "1 of 2")
    assert features.with_rationale.tolist() == [0, 2]
    # A cut rationale has no end token, a whole one has.
    assert len(features[0].rationale) == 10 and features[0].rationale[-1] != tokenizer.eos_token_id
    assert features[2].rationale[-1] == tokenizer.eos_token_id
    whole = PromptEncoder(tokenizer, Lengths())
    assert encoder.decide(features[1].text) == whole.decide(whole.text_ids(["cough"])[0])


def test_labels_too_long_are_counted_and_the_longest_named(tmp_path: Path) -> None:
    """One run tells how long labels must be allowed to be, not one run for each of them."""
    tokenizer = build("t5")[1]
    records = [Record(str(i), f"case {i}", "no " * n, choices=("yes", "no " * n)) for i, n in enumerate((9, 2, 30))]
    dataset = write_dataset(tmp_path / "data", DatasetInfo("d", "t", LabelSet()), {"train": records})
    encoder = PromptEncoder(tokenizer, Lengths(label=5))
    longest = encoder.label_tokens("no " * 30)
    cache = TokenCache(tmp_path / "tokens", tokenizer)
    with pytest.raises(DataError, match=rf"2 of 4 labels .*; set lengths\.label = {longest} or") as told:
        SplitFeatures(dataset.split("train"), dataset.hashes["train"], LabelSet(), encoder, cache)
    assert f"the longest {longest} ('no no" in str(told.value)
    assert len(PromptEncoder(tokenizer, Lengths(label=longest)).label_ids("no " * 30)) == longest


def test_choices_that_leave_no_room_for_a_text_are_refused(tmp_path: Path) -> None:
    """At the width of the prompt without a text there is no room, one token wider there is."""
    tokenizer = build("t5")[1]
    choices = ("cold", "flu", "migraine")
    records = [Record("b", "headache", "migraine", choices=choices)]
    dataset = write_dataset(tmp_path / "data", DatasetInfo("d", "t", LabelSet()), {"train": records})
    wide = PromptEncoder(tokenizer, Lengths())
    own = len(wide.choices_ids(choices))
    filled = len(wide.decide([])) + own

    def features(width: int) -> SplitFeatures:
        encoder = PromptEncoder(tokenizer, Lengths(input=width))
        cache = TokenCache(tmp_path / "tokens", tokenizer)
        return SplitFeatures(dataset.split("train"), dataset.hashes["train"], LabelSet(), encoder, cache)

    with pytest.raises(DataError, match=r"record b: the choices of the case take .* leave no room for its text"):
        features(filled)
    assert len(features(filled + 1)[0].text) > own


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), max_size=8))
def test_token_table_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]]) -> None:
    table = TokenTable.write(tmp_path_factory.mktemp("table") / "rows.bin", rows)
    assert [row.tolist() for row in table] == rows
    np.testing.assert_array_equal(table.lengths, [len(row) for row in rows])
