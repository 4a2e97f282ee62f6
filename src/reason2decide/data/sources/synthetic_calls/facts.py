"""Draw the facts of one synthetic call, and decide it by the rules. No words are chosen here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from reason2decide.data.sources.synthetic_calls.rules import Complaint, Rules

# All rates are ours. They make the labels as unbalanced as on a nurse line, and most red flags in a note not the
# patient's: counting words then misleads, reading does not.
PRESENT_COUNTS = ((0, 1, 2), (0.57, 0.39, 0.04))
DENIED_COUNTS = ((0, 1, 2), (0.7, 0.22, 0.08))
ELSEWHERE_COUNTS = ((0, 1), (0.85, 0.15))
MINOR_COUNTS = ((0, 1), (0.33, 0.67))
LEVEL_WEIGHTS = {2: 1.1, 3: 0.65, 4: 0.25}
RISK_COUNTS = ((0, 1, 2), (0.75, 0.21, 0.04))
RELEVANT_RISK_RATE = 0.28
HELD_OUT_RISK_RATE = 0.3
MENTIONED_RISK_RATE = 0.15
SEVERITIES = (("mild", "moderate", "severe"), (0.3, 0.6, 0.1))
RECENT_RATE = 0.6
CHILD_RATE = 0.25


class Mention(NamedTuple):
    """Something that a note names but the patient does not have now; `how` is denied, someone_else or past."""

    id: str
    how: str


@dataclass(frozen=True, slots=True)
class SyntheticCall:
    """All facts of one call; findings and risks are ids in the rules."""

    complaint: str
    sex: str
    age: int
    age_unit: str
    severity: str
    recent: bool
    risks: tuple[str, ...]
    present: tuple[str, ...]
    absent: tuple[Mention, ...]
    absent_risks: tuple[Mention, ...]

    @property
    def denied(self) -> tuple[str, ...]:
        """The findings the patient denies."""
        return tuple(mention.id for mention in self.absent if mention.how == "denied")


@dataclass(frozen=True, slots=True)
class Fact:
    """One reason of a decision: `kind` is complaint, red_flags, severe, mild or risk."""

    kind: str
    id: str
    text: str
    effect: str


@dataclass(frozen=True, slots=True)
class RuledLevel:
    """The level of a call, as an index into the labels, and the facts that decide it, in the order they apply."""

    level: int
    facts: tuple[Fact, ...]


def decide(call: SyntheticCall, rules: Rules) -> RuledLevel:
    """Apply the rules at the head of `triage_rules.toml`.

    The facts are the complaint, the gravest red flags, and whatever else changed the level; the rest is not a reason.
    """
    complaint = rules.complaints[call.complaint]
    level, top = complaint.base, len(rules.labels) - 1
    facts = [Fact("complaint", complaint.id, complaint.text, f"base: {rules.labels[level]}")]
    demands = {id: at_least for id in call.present if (at_least := rules.findings[id].at_least) is not None}
    if demands:
        level = max(level, *demands.values())
        effect = f"at least: {rules.labels[level]}"
        facts += [
            Fact("red_flags", id, rules.findings[id].text, effect) for id, demand in demands.items() if demand == level
        ]
    elif call.severity == "severe":
        level += 1
        facts.append(Fact("severe", "severe", "severe", "one level up"))
    elif call.severity == "mild" and call.recent and level > 0:
        level -= 1
        facts.append(Fact("mild", "mild_recent", "mild and recent", "one level down"))
    for id in call.risks:
        if id in rules.group_of(call.complaint).risks and level < top:
            level += 1
            facts.append(Fact("risk", id, rules.risks[id].text, "one level up"))
    return RuledLevel(level, tuple(facts))


def draw_call(rng: Random, rules: Rules, *, held_out: bool) -> SyntheticCall:
    """Draw a call; complaint-risk combinations held out of training occur only if `held_out`."""
    complaint = rules.complaints[rng.choice(list(rules.complaints))]
    risks = _draw_risks(rng, rules, complaint, held_out=held_out)
    age, age_unit = _draw_age(rng, complaint, risks)
    adult = age_unit == "yo" and age > 18
    sex = "F" if "pregnant" in risks else rng.choice("FM")
    flags = [id for id in rules.group_of(complaint.id).red_flags if adult or not rules.findings[id].adults_only]
    present = _draw_flags(rng, rules, flags, (), _count(rng, PRESENT_COUNTS))
    absent = [Mention(id, "denied") for id in _draw_flags(rng, rules, flags, present, _count(rng, DENIED_COUNTS))]
    for _ in range(_count(rng, ELSEWHERE_COUNTS)):
        used = [*present, *(mention.id for mention in absent)]
        # A baby has no relevant history.
        how = "someone_else" if age_unit == "mo" else rng.choice(("someone_else", "past"))
        absent += [Mention(id, how) for id in _draw_flags(rng, rules, flags, used, 1)]
    return SyntheticCall(
        complaint=complaint.id,
        sex=sex,
        age=age,
        age_unit=age_unit,
        severity=rng.choices(*SEVERITIES)[0],
        recent=rng.random() < RECENT_RATE,
        risks=risks,
        present=_in_order(rules, [*present, *_sample(rng, rules.minor_findings, (), _count(rng, MINOR_COUNTS))]),
        absent=tuple(absent),
        absent_risks=_draw_absent_risks(rng, rules, complaint, risks, adult=adult, sex=sex),
    )


def _draw_risks(rng: Random, rules: Rules, complaint: Complaint, *, held_out: bool) -> tuple[str, ...]:
    open_risks = [
        id for id in rules.risks if (complaint.infants or id != "infant") and (held_out or id not in complaint.held_out)
    ]
    relevant = [id for id in rules.groups[complaint.group].risks if id in open_risks]
    chosen: list[str] = []
    for _ in range(_count(rng, RISK_COUNTS)):
        pool = relevant if rng.random() < RELEVANT_RISK_RATE else open_risks
        if held_out and rng.random() < HELD_OUT_RISK_RATE:
            pool = list(complaint.held_out)
        id = rng.choice(pool)
        if id not in chosen and all(_compatible(id, other) for other in chosen):
            chosen.append(id)
    return tuple(id for id in rules.risks if id in chosen)


def _compatible(first: str, second: str) -> bool:
    pair = {first, second}
    return "infant" not in pair and pair != {"pregnant", "elderly"}


def _draw_age(rng: Random, complaint: Complaint, risks: Sequence[str]) -> tuple[int, str]:
    if "infant" in risks:
        return rng.randint(2, 11), "mo"
    if "elderly" in risks:
        return rng.randint(76, 92), "yo"
    if "pregnant" in risks:
        return rng.randint(20, 41), "yo"
    if complaint.infants and not risks and rng.random() < CHILD_RATE:
        return rng.randint(4, 12), "yo"
    return rng.randint(20, 64), "yo"


def _draw_flags(rng: Random, rules: Rules, flags: Sequence[str], but: Sequence[str], count: int) -> list[str]:
    """Draw red flags by the weights of their levels, present or not, so that a name alone says little."""
    chosen: list[str] = []
    for _ in range(count):
        by_level: dict[int, list[str]] = {}
        for id in flags:
            if id not in chosen and id not in but:
                by_level.setdefault(rules.findings[id].at_least or 0, []).append(id)
        if not by_level:  # a baby has few findings that a caller can report
            break
        level = rng.choices(list(by_level), [LEVEL_WEIGHTS[level] for level in by_level])[0]
        chosen.append(rng.choice(by_level[level]))
    return chosen


def _draw_absent_risks(
    rng: Random, rules: Rules, complaint: Complaint, risks: Sequence[str], *, adult: bool, sex: str
) -> tuple[Mention, ...]:
    """Draw a risk that the patient does not have, sometimes one that would matter."""
    if rng.random() >= MENTIONED_RISK_RATE:
        return ()
    relevant = [id for id in rules.groups[complaint.group].risks if id not in risks]
    pool = relevant if relevant and rng.random() < RELEVANT_RISK_RATE else [id for id in rules.risks if id not in risks]
    risk = rules.risks[rng.choice(pool)]
    hows = ["someone_else"]
    if adult and (risk.id != "pregnant" or (sex == "F" and "elderly" not in risks)):
        hows += [how for how in ("denied", "past") if getattr(risk, how)]
    return (Mention(risk.id, rng.choice(hows)),)


def _sample(rng: Random, ids: Sequence[str], but: Sequence[str], count: int) -> list[str]:
    rest = [id for id in ids if id not in but]
    return rng.sample(rest, min(count, len(rest)))


def _in_order(rules: Rules, ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(id for id in rules.findings if id in ids)


def _count(rng: Random, counts: tuple[tuple[int, ...], tuple[float, ...]]) -> int:
    return rng.choices(*counts)[0]
