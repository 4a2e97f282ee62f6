"""Objects out of what models write: tolerant parsing, schemas, validation."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from reason2decide.llm.client.structured import InvalidAnswer, parse_object, strict_schema, validated

BOUND = 25.0  # seconds that no fault may exceed, far above what they take


def answers(client, calls):
    """Outcomes by id, in no more than the bound; every call has exactly one."""
    started = time.monotonic()
    pairs = [(call.id, outcome) for call, outcome in client.run(calls)]
    assert time.monotonic() - started < BOUND
    assert len(pairs) == len(dict(pairs))
    return dict(pairs)


# --- structured answers -----------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
words = ["Sure!", "the set {x", "'s", ",", "```json\n", "```", "\n", "]", '"', "]}"]
prose = st.lists(st.sampled_from(words)).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=4), prose, prose, st.sampled_from([None, 2]))
def test_any_object_in_prose_comes_back_equal(value, before, after, indent):
    text = json.dumps(value, indent=indent)
    assert parse_object(f"{before}{text}{after}") == value
    assert parse_object(f"{before}\n```json\n{text}\n```\n{after}") == value


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(), json_values, min_size=1, max_size=4), prose)
def test_a_trailing_comma_is_forgiven(value, before):
    assert parse_object(f"{before}{json.dumps(value)[:-1]} ,\n}}") == value


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(blacklist_characters="}")))
def test_text_without_an_object_is_a_value_error(text):
    with pytest.raises(ValueError, match="no JSON object"):
        parse_object(text)


@pytest.mark.parametrize("text", ["", "{" * 5000, '{"a":' * 50000, '{"a": NaN}', "[1, 2]", '{"a" "b"}'])
def test_garbage_is_a_value_error(text):
    with pytest.raises(ValueError, match="no JSON object"):
        parse_object(text)


def test_the_conclusion_counts_and_commas_in_strings_stay():
    assert parse_object('First {"label": "home"}, but no: {"label": "clinic"} {}') == {"label": "clinic"}
    assert parse_object('{"a": "x,}", "b": [1, 2,],}') == {"a": "x,}", "b": [1, 2]}
    assert parse_object('{"a": "two\nlines"}') == {"a": "two\nlines"}


def test_a_schema_is_asked_for_strictly():
    class Inner(BaseModel):
        score: int = 3

    class Outer(BaseModel):
        inner: Inner
        note: str | None = None

    schema = strict_schema(Outer)
    assert schema["required"] == ["inner", "note"] and schema["additionalProperties"] is False
    assert schema["$defs"]["Inner"]["required"] == ["score"]
    assert "default" not in schema["$defs"]["Inner"]["properties"]["score"]
    assert validated(Outer, 'ok {"inner": {"score": 1}}') == Outer(inner=Inner(score=1))


# --- answers that think aloud, or end too early -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<think>It looks like {"label": "home"}.</think> {"label": "clinic"}', {"label": "clinic"}),
        ('It looks like {"label": "home"}.</think>\n{"label": "clinic"}', {"label": "clinic"}),  # opened by the prompt
        ('<THINKING>\n{"a": 1}\n</THINKING><think></think>{"a": 2}', {"a": 2}),
    ],
)
def test_what_is_thought_does_not_count(text, expected):
    assert parse_object(text) == parse_object(text, cut_off=True) == expected


@pytest.mark.parametrize("text", ['<think>{"label": "home"}', '<think>{"a": 1}</think> so <think>{"a": 2} but'])
@pytest.mark.parametrize("cut_off", [False, True])
def test_thinking_without_an_end_is_no_answer(text, cut_off):
    with pytest.raises(ValueError, match="no JSON object"):
        parse_object(text, cut_off=cut_off)


def test_an_answer_that_was_cut_off_concludes_at_its_end_only():
    aloud = 'The object looks like {"label": "home"}. Now the note says'
    assert parse_object(aloud) == {"label": "home"}
    with pytest.raises(ValueError, match="cut off before its conclusion"):
        parse_object(aloud, cut_off=True)
    assert parse_object('```json\n{"label": "home"}\n``', cut_off=True) == {"label": "home"}


def test_a_reply_cut_off_in_its_thinking_is_not_its_answer(shared_cases):
    """F04: what the model thought of is a valid object."""

    class Answer(BaseModel):
        rationale: str
        label: str

    message = json.loads((shared_cases / "F04_reply_thinking_cut.json").read_text())["choices"][0]["message"]
    with pytest.raises(InvalidAnswer):
        validated(Answer, message["content"], cut_off=True)


@pytest.mark.parametrize(
    "text", ['{\\"' * 200_000, '{"a' + '\\"' * 200_000, "{" + '", ' * 200_000, "{" + ", " * 200_000]
)
def test_the_time_to_parse_grows_with_the_length_only(text):
    """Were it to grow with the square, each of these would take minutes."""
    with pytest.raises(ValueError, match="no JSON object"):
        parse_object(text)
