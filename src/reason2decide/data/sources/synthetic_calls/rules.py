"""Read the rules of the synthetic calls from `triage_rules.toml`: complaints, findings, risks, and all wordings."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class Phrases:
    """Ways to say one thing: for every split, and for test notes only."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Symptom:
    """Something a patient may have; a red flag if it demands a minimum level."""

    id: str
    text: str
    short: str
    phrases: Phrases
    at_least: int | None
    adults_only: bool


@dataclass(frozen=True, slots=True)
class Risk:
    """Something that puts a patient in more danger, and the ways to mention it without the patient having it."""

    id: str
    text: str
    short: str
    phrases: Phrases
    denied: tuple[str, ...]
    someone_else: tuple[str, ...]
    past: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Danger:
    """A risk that makes any of some complaints and findings grave, and the level that it then demands."""

    risk: str
    complaints: frozenset[str]
    findings: frozenset[str]
    at_least: int


@dataclass(frozen=True, slots=True)
class Onset:
    """Since when: the words of rationales and of notes; a `recent` one began within a day."""

    text: str
    recent: bool
    phrases: Phrases


@dataclass(frozen=True, slots=True)
class Group:
    """Complaints with the same red flags and the same risks that matter."""

    risks: tuple[str, ...]
    red_flags: tuple[str, ...]
    style: int


@dataclass(frozen=True, slots=True)
class Complaint:
    """The reason for a call, and its level without other facts; `babies` are the risks of a baby who may have it."""

    id: str
    text: str
    phrases: Phrases
    group: str
    base: int
    held_out: tuple[str, ...]
    babies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything in `triage_rules.toml`, by id and in the order of the file."""

    labels: tuple[str, ...]
    groups: Mapping[str, Group]
    findings: Mapping[str, Symptom]
    risks: Mapping[str, Risk]
    dangers: tuple[Danger, ...]
    complaints: Mapping[str, Complaint]
    onset: Mapping[str, Onset]
    severity: Mapping[str, Phrases]
    sentences: Mapping[str, Phrases]
    relatives: tuple[str, ...]
    child_relatives: tuple[str, ...]
    rationale: Mapping[str, Any]

    @property
    def minor_findings(self) -> tuple[str, ...]:
        """The findings that are not red flags."""
        return tuple(finding.id for finding in self.findings.values() if finding.at_least is None)

    def group_of(self, complaint: str) -> Group:
        """The group of a complaint given by its id."""
        return self.groups[self.complaints[complaint].group]


def rules_text() -> str:
    """The text of `triage_rules.toml`."""
    return resources.files(__package__).joinpath("triage_rules.toml").read_text("utf-8")


@cache
def load_rules() -> Rules:
    """Load the rules as objects; levels become indices into `labels`."""
    content = tomllib.loads(rules_text())
    labels = tuple(content["labels"])
    findings = {
        id: Symptom(
            id,
            item["text"],
            item.get("short", item["text"]),
            _phrases(item),
            labels.index(item["at_least"]) if "at_least" in item else None,
            item.get("adults_only", False),
        )
        for id, item in content["findings"].items()
    }
    risks = {
        id: Risk(
            id,
            item["text"],
            item["short"],
            _phrases(item),
            *(tuple(item.get(key, ())) for key in ("denied", "someone_else", "past")),
        )
        for id, item in content["risks"].items()
    }
    complaints = {
        id: Complaint(
            id,
            item["text"],
            _phrases(item),
            item["group"],
            labels.index(item["base"]),
            tuple(item["held_out"]),
            tuple(item.get("babies", ())),
        )
        for id, item in content["complaints"].items()
    }
    return Rules(
        labels=labels,
        groups={
            id: Group(tuple(item["risks"]), tuple(item["red_flags"]), item["style"])
            for id, item in content["groups"].items()
        },
        findings=findings,
        risks=risks,
        dangers=tuple(
            Danger(
                item["risk"],
                frozenset(item.get("complaints", ())),
                frozenset(item.get("findings", ())),
                labels.index(item["at_least"]),
            )
            for item in content["dangers"]
        ),
        complaints=complaints,
        onset={
            id: Onset(item["text"], item.get("recent", False), _phrases(item)) for id, item in content["onset"].items()
        },
        **{key: {id: _phrases(item) for id, item in content[key].items()} for key in ("severity", "sentences")},
        relatives=tuple(content["names"]["relatives"]),
        child_relatives=tuple(content["names"]["child_relatives"]),
        rationale=content["rationale"],
    )


def _phrases(item: Mapping[str, Any]) -> Phrases:
    return Phrases(tuple(item.get("wordings", ())), tuple(item.get("test_wordings", ())))
