"""The text in FHIR R4 resources, for a model that reads notes.

What is read: `Observation` (`valueString`, preceded by the text of `code`; notes), `Encounter` (texts of `reasonCode`),
`DocumentReference` (attachments of plain text or HTML), `Communication` (`contentString` of the payload), and Bundles
of them. A value without words (`valueQuantity`) is not text, and a problem list (`Condition`) is not a note: a
diagnosis in it may be the very decision asked for. Nothing is fetched: an attachment with only a URL has no text.

Withdrawn resources are ignored: entered in error, cancelled, not done, superseded.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reason2decide.errors import Reason2DecideError

MOST_RESOURCES = 1000  # ours: per request
LONGEST_TEXT = 200_000  # ours: characters of all texts together; models read a few thousand
# Also values of `docStatus` of a DocumentReference. Source: the value sets of the four resources' status in FHIR R4.
WITHDRAWN = frozenset({"entered-in-error", "cancelled", "not-done", "superseded"})
# Encodings that hospitals use; other codecs of Python are slow or not for text.
CHARSETS = frozenset({"utf-8", "us-ascii", "iso-8859-1", "iso-8859-15", "windows-1252", "utf-16"})

# Each alternative ends as early as possible or takes the rest, so the time is linear in the length.
_TAG = re.compile(
    r"<!--.*?(?:-->|\Z)"
    r"|<(?P<hidden>script|style|head|title)\b[^<>]*>.*?(?:</(?P=hidden)\s*>|\Z)"
    r"|</?(?P<inline>a|abbr|b|em|font|i|mark|small|span|strong|sub|sup|u)\b[^<>]*>"
    r"|</?[a-z][^<>]*>|<[!?][^<>]*>",
    re.DOTALL | re.IGNORECASE,
)


class FhirError(Reason2DecideError):
    """The request contains more than this module reads; the message quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class FhirText:
    """The texts in order with an empty line between them, and where they came from.

    `sources` counts the resources that gave text, by type. `incomplete` says that the sender could not give everything:
    an OperationOutcome with an error, or a Bundle with a further page.
    """

    text: str
    sources: Mapping[str, int]
    incomplete: bool = False


def text_of(*values: object) -> FhirText:
    """The text of FHIR resources as parsed JSON; what is missing, null or of another kind is skipped.

    A resource that occurs twice, by type and id, counts once.

    Raises:
        FhirError: more than `MOST_RESOURCES` or `LONGEST_TEXT`.
    """
    texts: list[str] = []
    sources: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    incomplete, length = False, 0
    for resource in _resources(values):
        kind, identity = resource["resourceType"], resource.get("id")
        incomplete |= _says_incomplete(resource)
        if kind not in _READERS or _withdrawn(resource):
            continue
        if isinstance(identity, str):
            if (kind, identity) in seen:
                continue
            seen.add((kind, identity))
        parts = [text for text in map(_tidy, _READERS[kind](resource)) if text]
        if parts:
            texts.append("\n".join(parts))
            sources[kind] += 1
            length += len(texts[-1])
        if length > LONGEST_TEXT:
            raise FhirError(f"the resources contain more than {LONGEST_TEXT} characters of text; send fewer")
    return FhirText("\n\n".join(texts), dict(sources), incomplete)


def _resources(values: tuple[object, ...]) -> Iterator[dict[str, Any]]:
    """All resources in order, those in a Bundle directly after it."""
    waiting = list(reversed(values))
    count = 0
    while waiting:
        value = waiting.pop()
        if not isinstance(value, dict) or not isinstance(value.get("resourceType"), str):
            continue
        count += 1
        if count > MOST_RESOURCES:
            raise FhirError(f"there are more than {MOST_RESOURCES} FHIR resources; send fewer")
        yield value
        if value["resourceType"] == "Bundle":
            waiting += reversed([entry.get("resource") for entry in _objects(value, "entry")])


def _says_incomplete(resource: Mapping[str, Any]) -> bool:
    if resource["resourceType"] == "OperationOutcome":
        return any(issue.get("severity") in ("fatal", "error") for issue in _objects(resource, "issue"))
    if resource["resourceType"] == "Bundle":
        return any(link.get("relation") == "next" for link in _objects(resource, "link"))
    return False


def _withdrawn(resource: Mapping[str, Any]) -> bool:
    return any(resource.get(key) in WITHDRAWN for key in ("status", "docStatus") if _string(resource, key))


# ---- The text of each kind of resource


def _observation(resource: Mapping[str, Any]) -> Iterator[str]:
    value = _string(resource, "valueString")
    name = _concept(resource.get("code"))
    if value:
        yield f"{name}: {value}" if name else value
    for note in _objects(resource, "note"):
        yield _string(note, "text")


def _encounter(resource: Mapping[str, Any]) -> Iterator[str]:
    for reason in _objects(resource, "reasonCode"):
        yield _concept(reason)


def _document(resource: Mapping[str, Any]) -> Iterator[str]:
    """The first attachment with text: `content` has the same document in several formats."""
    for content in _objects(resource, "content"):
        text = _attachment(content.get("attachment"))
        if text:
            yield text
            return


def _communication(resource: Mapping[str, Any]) -> Iterator[str]:
    for payload in _objects(resource, "payload"):
        yield _string(payload, "contentString")


_READERS = {
    "Observation": _observation,
    "Encounter": _encounter,
    "DocumentReference": _document,
    "Communication": _communication,
}


def _attachment(attachment: object) -> str:
    if not isinstance(attachment, dict):
        return ""
    kind, *parameters = (part.strip().lower() for part in _string(attachment, "contentType").split(";"))
    charset = next((part[8:].strip("\"' ") for part in parameters if part.startswith("charset=")), "utf-8")
    data = _string(attachment, "data")
    if kind not in ("text/plain", "text/html") or charset not in CHARSETS or len(data) > 8 * LONGEST_TEXT:
        return ""
    try:
        text = base64.b64decode("".join(data.split())).decode(charset, "replace")
    except (binascii.Error, ValueError):
        return ""
    return _without_tags(text) if kind == "text/html" else text


def _without_tags(markup: str) -> str:
    """The text of HTML: inline tags are removed, all others become line breaks."""
    return html.unescape(_TAG.sub(lambda found: "" if found["inline"] else "\n", markup))


def _concept(concept: object) -> str:
    """The text of a CodeableConcept, or the display of its first coding that has one."""
    if not isinstance(concept, dict):
        return ""
    displays = (_string(coding, "display") for coding in _objects(concept, "coding"))
    return _string(concept, "text") or next(filter(None, displays), "")


def _tidy(text: str) -> str:
    """The text with single spaces, none at the ends of lines, and at most one empty line between two others."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(" ".join(line.split()) for line in text.splitlines())).strip()


def _string(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    return found.strip() if isinstance(found, str) else ""


def _objects(value: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = value.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
