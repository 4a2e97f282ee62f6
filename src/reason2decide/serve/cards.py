"""CDS Hooks cards: how a decision is shown to a person.

Data that a card quotes is escaped, so it cannot become markup or a link.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from pydantic import BaseModel

from reason2decide.data.records import LabelSet
from reason2decide.data.words import escaped
from reason2decide.serve.fhir import FhirText, unread_of

if TYPE_CHECKING:
    from reason2decide.model.decision import Decision
    from reason2decide.model.reasons import Reason
    from reason2decide.serve.served_model import ServedModel

LONGEST_SUMMARY = 139  # fewer than 140 characters, counted in UTF-16 as JavaScript does
REASONS_SYSTEM = "urn:uuid:0d9f2c3e-8a51-4c0b-9e0e-6a3f5b7c1d24"  # ours: the system of the codes below
URGENCY_REASONS = {"more-urgent": "Needs more urgent care", "less-urgent": "Needs less urgent care"}
DECISION_REASON = {"other-decision": "Another decision is right"}
REASONS = {  # ours: so that errors can be learnt from, and distinguished from what did not apply
    "unsupported-rationale": "The rationale is wrong, or the note does not support it",
    "missing-information": "The note lacks the deciding information",
    "already-decided": "Already decided or done",
}

_LINK = re.compile(r"(?<=www)(?=\.)|(?<=:)(?=//)|(?=@)", re.IGNORECASE)


class Coding(BaseModel):
    """A code, its system, and the text to display."""

    code: str
    system: str
    display: str


class Source(BaseModel):
    """Where a card's guidance comes from."""

    label: str
    url: str | None = None


class Card(BaseModel):
    """Guidance for a person; `detail` is GitHub Flavored Markdown."""

    uuid: str
    summary: str
    detail: str
    indicator: Literal["info", "warning", "critical"]
    source: Source
    overrideReasons: list[Coding]


def card_of(
    decision: Decision, reason: Reason | None, given: FhirText, model: ServedModel, source_url: str | None
) -> Card:
    """The card of a decision on a text, under a new uuid."""
    return Card(
        uuid=str(uuid4()),
        summary=summary(decision, reason),
        detail=detail(decision, reason, given, model),
        indicator=indicator(decision, model.labels),
        source=Source(label=f"Reason2Decide: {plain(model.name)}", url=source_url),
        overrideReasons=override_reasons(model.labels),
    )


def indicator(decision: Decision, labels: LabelSet) -> Literal["info", "warning", "critical"]:
    """The urgency of a card: the most urgent label is critical, the upper half of the others a warning.

    The middle of all labels counts as upper. A deferred decision is at least a warning. Source: ours.
    """
    if labels.urgent is not None:
        last = len(labels.values) - 1
        position = labels.values.index(decision.label)
        urgency = position if labels.urgent == "last" else last - position
        if urgency == last:
            return "critical"
        if 2 * urgency >= last:
            return "warning"
    return "warning" if decision.deferred else "info"


def summary(decision: Decision, reason: Reason | None = None) -> str:
    """The decision and its probability in fewer than 140 characters; if deferred, also that a person should decide."""
    unsupported = reason is not None and reason.supports is False
    why = "The note was not read whole" if decision.cut else "Unsupported by its reason" if unsupported else "Uncertain"
    before = f"{why}, a person should decide; most likely: " if decision.deferred else ""
    after = f" ({_percent(decision.confidence)})"
    return before + _cut(plain(decision.label), LONGEST_SUMMARY - len(before) - len(after)) + after


def detail(decision: Decision, reason: Reason | None, given: FhirText, model: ServedModel) -> str:
    """The distribution first, then the rationale and what the decision is based on, as Markdown."""
    unsupported = reason is not None and reason.supports is False
    ranked = sorted(decision.probabilities, key=lambda label: -decision.probabilities[label])
    parts = ["Read the note first."]
    if decision.cut:
        parts.append(
            f"**The model has read {decision.tokens_read} of the text's {decision.tokens} tokens, and nothing of the "
            "rest: what decides may stand there.**"
        )
    elif decision.deferred and not unsupported:
        parts.append("**The model is not sure enough of this decision: a person should decide.**")
    rows = [f"| {_quoted(label)} | {_percent(decision.probabilities[label])} |" for label in ranked]
    parts.append("\n".join(["| Decision | Probability |", "|---|---:|", *rows]))
    if len(decision.prediction_set) > 1:
        parts.append("Not ruled out: " + "; ".join(map(_quoted, decision.prediction_set)) + ".")
    if reason is not None and reason.text.strip():
        parts.append(f"**Why, in the model's own words, which nobody has checked:** {_quoted(reason.text)}")
    if unsupported:
        then = ": a person should decide" if decision.deferred else ""
        parts.append(f"**This reason does not support the decision above: it argues for something else{then}.**")
    if given.missing:
        parts.append("**Some of the data was not available, so the model has not seen everything.**")
    if given.unread:
        parts.append(f"**Not read by the model: {_quoted('; '.join(unread_of(given)))}.**")
    read = ", ".join(f"{count} {kind}" for kind, count in given.sources.items()) or "the text of the request"
    how = "was given" if decision.cut else "has read"
    parts.append(f"Model {_quoted(model.name)} ({model.hash[:12]}), which {how}: {read}.")
    return "\n\n".join(parts)


def override_reasons(labels: LabelSet) -> list[Coding]:
    """Reasons that a person may give for overriding a card."""
    reasons = (URGENCY_REASONS if labels.urgent else DECISION_REASON) | REASONS
    return [Coding(code=code, system=REASONS_SYSTEM, display=display) for code, display in reasons.items()]


def _quoted(text: str) -> str:
    """Data as Markdown that shows it literally: escaped, with an invisible space in what viewers would make a link."""
    return _LINK.sub("\u200b", escaped(text))


def plain(text: str) -> str:
    """Text on one line, without control characters and characters that change its direction."""
    kept = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text if not "\u202a" <= c <= "\u202e")
    return " ".join(re.sub("[\u2066-\u2069]", "", kept).split())


def _cut(text: str, room: int) -> str:
    """The text, or its beginning with an ellipsis, in at most `room` UTF-16 units; no character loses its marks."""
    if _units(text) <= room:
        return text
    end = min(len(text), room)
    while end and (_units(text[:end]) > room - 1 or _belong(text[end - 1], text[end])):
        end -= 1
    return text[:end].rstrip() + "…"


def _belong(first: str, second: str) -> bool:
    """Whether two code points are shown as one character: the second is a mark, or a joiner connects them."""
    return unicodedata.category(second).startswith("M") or "\u200d" in (first, second)


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _percent(probability: float) -> str:
    """Whole percentages that never claim certainty."""
    return "<1%" if probability < 0.01 else ">99%" if probability > 0.99 else f"{probability:.0%}"
