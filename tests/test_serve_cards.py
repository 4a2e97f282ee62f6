"""Cards of CDS Hooks: indicator, summary, detail as markdown, and reasons for an override."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from serving import triage_bundle
from toy import LABELS

from reason2decide.data.records import LabelSet
from reason2decide.model.decision import Decision
from reason2decide.model.reasons import Reason
from reason2decide.serve import cards
from reason2decide.serve.fhir import FhirText
from reason2decide.serve.served_model import ServedModel

ORDINAL = LabelSet(LABELS.values, ordinal=True, urgent="last")
GFM = MarkdownIt("gfm-like", {"linkify": False})


@pytest.fixture(scope="module")
def model() -> ServedModel:
    """A small trained model, whose name and hash stand on the card."""
    return ServedModel("Toy triage", triage_bundle())


def decision(*probabilities: float, deferred: bool = False, labels: tuple[str, ...] = LABELS.values) -> Decision:
    own = dict(zip(labels, probabilities, strict=True))
    best = max(own, key=own.__getitem__)
    return Decision(best, own, (best,), deferred)


@pytest.mark.parametrize(
    ("labels", "urgencies"),
    [
        (LABELS, ["info", "info", "info"]),
        (LabelSet(LABELS.values, ordinal=True), ["info", "info", "info"]),
        (ORDINAL, ["info", "warning", "critical"]),
        (replace(ORDINAL, urgent="first"), ["critical", "warning", "info"]),
        (LabelSet(("a", "b"), True, "last"), ["info", "critical"]),
        (LabelSet(("a", "b", "c", "d"), True, "last"), ["info", "info", "warning", "critical"]),
        (LabelSet(tuple("12345"), True, "first"), ["critical", "warning", "warning", "info", "info"]),
    ],
)
def test_the_indicator_follows_urgency_and_confidence(labels: LabelSet, urgencies: list[str]) -> None:
    for label, expected in zip(labels.values, urgencies, strict=True):
        sure = Decision(label, dict.fromkeys(labels.values, 0.1), (label,), deferred=False)
        assert cards.indicator(sure, labels) == expected
        at_least = "warning" if expected == "info" else expected
        assert cards.indicator(replace(sure, deferred=True), labels) == at_least


def test_a_deferred_decision_says_that_a_person_should_decide(model: ServedModel) -> None:
    own = decision(0.3, 0.4, 0.3, deferred=True)
    assert cards.summary(own) == "Uncertain, a person should decide; most likely: see a doctor (40%)"
    assert "a person should decide" in cards.detail(own, None, FhirText("a", {}), model)
    assert cards.summary(replace(own, deferred=False)) == "see a doctor (40%)"
    sure, against = decision(0.1, 0.8, 0.1, deferred=True), Reason("argues for another", 0.01, False)
    assert cards.summary(sure, against).startswith("Unsupported by its reason, a person should decide; most likely:")


@examples(deadline=None)
@given(st.text(min_size=1, max_size=400).filter(str.strip), st.booleans(), st.floats(0, 1))
def test_summaries_are_short_whatever_the_label(label: str, deferred: bool, probability: float) -> None:
    shown = cards.summary(Decision(label, {label: probability}, (label,), deferred))
    assert len(shown.encode("utf-16-le", "surrogatepass")) // 2 < 140
    assert "\n" not in shown and shown.endswith("%)")


def test_long_labels_are_cut_between_characters() -> None:
    label = "e\u0301" * 200  # letters with a combining accent
    shown = cards.summary(decision(1.0, 0, 0, labels=(label, "b", "c")))
    assert len(shown) <= 139 and re.fullmatch("(e\u0301)+… \\(>99%\\)", shown)
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    shown = cards.summary(decision(1.0, 0, 0, labels=(family * 40, "b", "c")))
    assert re.fullmatch(f"({family})+… \\(>99%\\)", shown)
    assert cards.summary(decision(1.0, 0, 0, labels=("x\u202ey\x07\n z", "b", "c"))) == "xy z (>99%)"


def test_no_probability_is_shown_as_certain() -> None:
    assert [cards._percent(p) for p in (0.0, 0.004, 0.01, 0.5, 0.99, 0.996, 1.0)] == [
        *("<1%", "<1%", "1%", "50%", "99%", ">99%", ">99%")
    ]


NASTY = [
    "<script>alert(1)</script><img src=x onerror=y> &lt;b&gt;",
    "[click](http://evil.example) ![i](http://evil.example/i.png) <http://evil.example>",
    "see http://evil.example or www.evil.example or HTTPS://evil.example or a@evil.example, WWW.evil.example",
    "| a | b |\n|---|---|\n# h\n\n- item\n1. one\n> quote\n```\ncode\n```\n    indented\n***\n~~s~~ **b** _i_ `c`",
    "[a]: http://evil.example\n\n[a]",
    "ftp://evil.example mailto:a@evil.example xmpp:a@evil.example/x",
]


@pytest.mark.parametrize("nasty", NASTY)
def test_data_in_the_detail_is_no_markup_and_no_link(model: ServedModel, nasty: str) -> None:
    own = Decision(nasty, {nasty: 0.6, "b": 0.4}, (nasty, "b"), deferred=True)
    named: Any = SimpleNamespace(name=nasty, hash=model.hash)
    given_detail = cards.detail(own, Reason(nasty), FhirText("a", {}), named)
    tokens = GFM.parse(given_detail)
    kinds = {token.type for token in tokens} | {inner.type for token in tokens for inner in token.children or ()}
    assert kinds <= {
        *("paragraph_open", "paragraph_close", "inline", "text", "text_special", "strong_open", "strong_close"),
        *(f"{part}_{end}" for part in ("table", "thead", "tbody", "tr", "th", "td") for end in ("open", "close")),
    }
    assert sum(token.type == "tr_open" for token in tokens) == 3
    # What GitHub's viewers take for links, before and after escapes are undone.
    for text in (given_detail, re.sub("<.*?>", "", GFM.render(given_detail))):
        assert not re.search(r"https?://|ftp://|www\.|[\w.+-]@|mailto:[^\u200b]*@", text, re.IGNORECASE)


@examples(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab1 \n\t<>[]()!*_`~#|-+=.:/@\\&;$w"), max_size=40))
def test_any_rationale_is_shown_as_it_is(rationale: str) -> None:
    own: Any = SimpleNamespace(name="m", hash="0" * 64)
    shown = GFM.parse(cards.detail(decision(0.2, 0.5, 0.3), Reason(rationale), FhirText("a", {}), own))
    texts = ["".join(inner.content for inner in token.children or ()) for token in shown if token.type == "inline"]
    before = "Why, in the model's own words, which nobody has checked: "
    found = [text.removeprefix(before) for text in texts if text.startswith(before)]
    assert [text.replace("\u200b", "") for text in found] == [" ".join(rationale.split())] * bool(rationale.strip())


def test_the_detail_names_what_is_not_ruled_out_and_what_is_missing(model: ServedModel) -> None:
    own = replace(decision(0.2, 0.5, 0.3), prediction_set=("see a doctor", "call an ambulance"))
    shown = cards.detail(own, Reason("why"), FhirText("a", {"Observation": 2, "Encounter": 1}, missing=True), model)
    assert "Not ruled out: see a doctor; call an ambulance." in shown
    assert "has not seen everything" in shown and "2 Observation, 1 Encounter" in shown
    assert shown.index("| see a doctor |") < shown.index("| call an ambulance |") < shown.index("| home care |")
    assert shown.startswith("Read the note first.") and shown.index("| home care |") < shown.index("why")


@pytest.mark.parametrize("labels", [LABELS, ORDINAL])
def test_override_reasons_have_a_display(labels: LabelSet) -> None:
    reasons = cards.override_reasons(labels)
    assert all(reason.display.strip() and UUID(reason.system.removeprefix("urn:uuid:")) for reason in reasons)
    codes = [reason.code for reason in reasons]
    assert len(set(codes)) == len(codes) and all(code.replace("-", "").isalpha() for code in codes)
    assert ("more-urgent" in codes) == (labels.urgent is not None)
