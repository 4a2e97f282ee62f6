"""The text in FHIR R4 resources, for a model that reads notes, and what of them was not read.

What is read: `Observation` (`valueString` or `valueCodeableConcept`, preceded by the text of `code`; notes),
`Encounter` (texts of `reasonCode`), `DocumentReference` (its first attachment with text), `Communication` (texts and
attachments of the payload; notes), and Bundles of them. A problem list (`Condition`) is not a note: a diagnosis in
it may be the very decision asked for. Nothing is fetched. What else is there of clinical content is listed in `unread`,
such as a number, an attachment with only an address, or a resource of another type: a person must see that the model
has not read it.

Withdrawn resources are ignored: entered in error, cancelled, not done, superseded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from reason2decide.errors import Reason2DecideError
from reason2decide.serve.attachments import Unread, attachment_text

MOST_RESOURCES = 1000  # ours: per request
LONGEST_TEXT = 200_000  # ours: characters of all texts together; models read a few thousand
# Also values of `docStatus` of a DocumentReference. Source: the value sets of the four resources' status in FHIR R4.
WITHDRAWN = frozenset({"entered-in-error", "cancelled", "not-done", "superseded"})

_PATIENT = re.compile(r"(?:^|/)Patient/([A-Za-z0-9.-]{1,64})(?:/_history/[^/]*)?$")

Part = str | Unread  # a text, or one that was not read, or not whole


class FhirError(Reason2DecideError):
    """The request contains more than this module reads; the message quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class FhirText:
    """The texts in order with an empty line between them, and where they came from.

    `sources` counts the resources that gave text, by type. `unread` counts what was not read, by type and reason.
    `missing` says that the sender could not give everything: an OperationOutcome with an error, or a Bundle with a
    further page.
    """

    text: str
    sources: Mapping[str, int]
    missing: bool = False
    unread: Mapping[tuple[str, str], int] = field(default_factory=dict)


def text_of(*values: object) -> FhirText:
    """The text of FHIR resources as parsed JSON; what is missing, null or of another kind is skipped.

    A resource that occurs twice, by type and id, counts once.

    Raises:
        FhirError: more than `MOST_RESOURCES` or `LONGEST_TEXT`.
    """
    texts: list[str] = []
    sources: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    unread: Counter[tuple[str, str]] = Counter()
    missing, length = False, 0
    for resource in _resources(values):
        kind, identity = resource["resourceType"], resource.get("id")
        missing |= _says_missing(resource)
        if kind in _ADMINISTRATIVE or _withdrawn(resource):
            continue
        if isinstance(identity, str):
            if (kind, identity) in seen:
                continue
            seen.add((kind, identity))
        found: list[str] = []
        for part in _READERS.get(kind, _other)(resource):
            if isinstance(part, Unread):
                unread[kind, str(part)] += 1
            found.append(part.text if isinstance(part, Unread) else part)
        parts = [text for text in map(_tidy, found) if text]
        if parts:
            texts.append("\n".join(parts))
            sources[kind] += 1
            length += len(texts[-1])
        if length > LONGEST_TEXT:
            raise FhirError(f"the resources contain more than {LONGEST_TEXT} characters of text; send fewer")
    return FhirText("\n\n".join(texts), dict(sources), missing, dict(unread))


def patients_of(*values: object) -> set[str]:
    """The ids of the patients that resources are about, as far as they name them by `Patient/ID`."""
    subjects = (resource.get("subject") for resource in _resources(values))
    references = (_string(subject, "reference") for subject in subjects if isinstance(subject, dict))
    return {found[1] for found in map(_PATIENT.search, references) if found}


def unread_of(found: FhirText) -> list[str]:
    """What was not read, each kind as words for a person, such as "1 DocumentReference (only an address is given)"."""
    return [f"{count} {kind} ({reason})" for (kind, reason), count in found.unread.items()]


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


def _says_missing(resource: Mapping[str, Any]) -> bool:
    if resource["resourceType"] == "OperationOutcome":
        return any(issue.get("severity") in ("fatal", "error") for issue in _objects(resource, "issue"))
    if resource["resourceType"] == "Bundle":
        return any(link.get("relation") == "next" for link in _objects(resource, "link"))
    return False


def _withdrawn(resource: Mapping[str, Any]) -> bool:
    return any(resource.get(key) in WITHDRAWN for key in ("status", "docStatus") if _string(resource, key))


# ---- The text of each kind of resource


def _observation(resource: Mapping[str, Any]) -> Iterator[Part]:
    value = _string(resource, "valueString") or _concept(resource.get("valueCodeableConcept"))
    name = _concept(resource.get("code"))
    if value:
        yield f"{name}: {value}" if name else value
    elif any(key.startswith("value") for key in resource):
        yield Unread("its value is not text")
    elif "dataAbsentReason" in resource:
        yield Unread("it has no value")
    if "component" in resource:
        yield Unread("its components are not read")
    if "interpretation" in resource:
        yield Unread("its interpretation is not read")
    for note in _objects(resource, "note"):
        yield _string(note, "text")


def _encounter(resource: Mapping[str, Any]) -> Iterator[Part]:
    for reason in _objects(resource, "reasonCode"):
        yield _concept(reason) or Unread("its reason is a code without a text")
    if _objects(resource, "reasonReference"):
        yield Unread("its reason is in another resource")
    if _objects(resource, "diagnosis"):
        yield Unread("its diagnosis is not read")


def _document(resource: Mapping[str, Any]) -> Iterator[Part]:
    """The first attachment that can be read whole, else the best: `content` has one document in several formats."""
    best: Unread | None = None
    for content in _objects(resource, "content"):
        read = _attachment(content.get("attachment"))
        if isinstance(read, str):
            yield read
            return
        best = read if best is None or (read.text and not best.text) else best
    yield best or Unread("it has no attachment")


def _communication(resource: Mapping[str, Any]) -> Iterator[Part]:
    for payload in _objects(resource, "payload"):
        if "contentAttachment" in payload:
            yield _attachment(payload["contentAttachment"])
        else:
            yield _string(payload, "contentString") or Unread("its content is not text")
    for note in _objects(resource, "note"):
        yield _string(note, "text")


def _other(resource: Mapping[str, Any]) -> Iterator[Part]:
    yield Unread("this type is not read")


def _attachment(attachment: object) -> Part:
    try:
        return attachment_text(attachment if isinstance(attachment, dict) else {})
    except Unread as unread:
        return unread


# Who, where and how, not what of the patient; a Bundle's entries are read one by one.
_ADMINISTRATIVE = frozenset(
    {
        "Bundle", "Device", "Endpoint", "Location", "OperationOutcome", "Organization", "Patient", "Practitioner",
        "PractitionerRole", "Provenance", "RelatedPerson",
    }
)  # fmt: skip
_READERS = {
    "Observation": _observation,
    "Encounter": _encounter,
    "DocumentReference": _document,
    "Communication": _communication,
}


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
