"""Draw the facts of one synthetic call, and decide it by the rules. No words are chosen here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from reason2decide.data.sources.synthetic_calls.rules import Complaint, Rules

# All rates are ours. They make the labels as unbalanced as on a nurse line, and most red flags in a note not the
# patient's: counting words then misleads, reading does not.
PRESENT_COUNTS = ((0, 1, 2), (0.62, 0.34, 0.04))
DENIED_COUNTS = ((0, 1, 2), (0.7, 0.22, 0.08))
ELSEWHERE_COUNTS = ((0, 1), (0.85, 0.15))
MINOR_COUNTS = ((0, 1), (0.33, 0.67))
LEVEL_WEIGHTS = {2: 1.1, 3: 0.65, 4: 0.25}
RISK_COUNTS = ((0, 1, 2), (0.5, 0.42, 0.08))
RELEVANT_RISK_RATE = 0.5
HELD_OUT_RISK_RATE = 0.2
MENTIONED_RISK_RATE = 0.15
SEVERITIES = (("mild", "moderate", "severe"), (0.3, 0.6, 0.1))
RECENT_RATE = 0.6
CHILD_RATE = 0.25
BABIES = ("newborn", "infant")  # risks told by an age in months; the first is under three months


class Mention(NamedTuple):
    """Something that a note names but the patient does not have now; `how` is denied, someone_else or past."""

    id: str
    how: str


@dataclass(frozen=True, slots=True)
class SyntheticCall:
    """All facts of one call; complaint, onset, findings and risks are ids in the rules."""

    complaint: str
    sex: str
    age: int
    age_unit: str
    severity: str
    onset: str
    risks: tuple[str, ...]
    present: tuple[str, ...]
    absent: tuple[Mention, ...]
    absent_risks: tuple[Mention, ...]

    @property
    def of_child(self) -> bool:
        """Whether the patient is 18 or younger."""
        return self.age_unit == "mo" or self.age <= 18

    @property
    def denied(self) -> tuple[str, ...]:
        """The findings the patient denies."""
        return tuple(mention.id for mention in self.absent if mention.how == "denied")


@dataclass(frozen=True, slots=True)
class Fact:
    """One reason of a decision: `kind` is complaint, red_flags, danger, severe, mild or risk.

    The id of a danger joins those of its risk and of what the risk makes grave by "+".
    """

    kind: str
    id: str
    text: str
    effect: str

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the complaint, findings and risks that the reason rests on."""
        return tuple(self.id.split("+"))


@dataclass(frozen=True, slots=True)
class RuledLevel:
    """The level of a call, as an index into the labels, and the facts that decide it, in the order they apply."""

    level: int
    facts: tuple[Fact, ...]


def decide(call: SyntheticCall, rules: Rules) -> RuledLevel:
    """Apply the rules at the head of `triage_rules.toml`.

    The facts are the complaint, the gravest red flags and dangers, and whatever else changed the level; the rest is not
    a reason.
    """
    complaint = rules.complaints[call.complaint]
    level, top = complaint.base, len(rules.labels) - 1
    facts = [Fact("complaint", complaint.id, complaint.text, f"base: {rules.labels[level]}")]
    demands = [*_red_flags(call, rules), *_dangers(call, rules)]
    level = max([level, *(demand for demand, _ in demands)])
    facts += [replace(fact, effect=f"at least: {rules.labels[level]}") for demand, fact in demands if demand == level]
    used = {id for _, fact in demands if fact.kind == "danger" for id in fact.ids}
    risks = [id for id in call.risks if id in rules.group_of(call.complaint).risks and id not in used]
    if call.severity == "severe" and level < top:
        level += 1
        facts.append(Fact("severe", "severe", "severe", "one level up"))
    elif call.severity == "mild" and rules.onset[call.onset].recent and not demands and not risks and level > 0:
        level -= 1
        facts.append(Fact("mild", "mild_recent", "mild and recent", "one level down"))
    for id in risks:
        if level < top:
            level += 1
            facts.append(Fact("risk", id, rules.risks[id].text, "one level up"))
    return RuledLevel(level, tuple(facts))


def _red_flags(call: SyntheticCall, rules: Rules) -> list[tuple[int, Fact]]:
    """The level that each red flag of the patient demands, and the fact."""
    findings = [rules.findings[id] for id in call.present]
    return [
        (finding.at_least, Fact("red_flags", finding.id, finding.text, ""))
        for finding in findings
        if finding.at_least is not None
    ]


def _dangers(call: SyntheticCall, rules: Rules) -> list[tuple[int, Fact]]:
    """The level that each danger demands, and the fact; of several with one risk, only the gravest."""
    found: dict[str, tuple[int, Fact]] = {}
    for danger in rules.dangers:
        made_grave = [*({call.complaint} & danger.complaints), *(id for id in call.present if id in danger.findings)]
        if danger.risk not in call.risks or not made_grave:
            continue
        if danger.risk not in found or found[danger.risk][0] < danger.at_least:
            other = made_grave[0]
            named = rules.complaints[other] if other in rules.complaints else rules.findings[other]
            text = f"{rules.risks[danger.risk].text} with {named.text}"
            found[danger.risk] = danger.at_least, Fact("danger", f"{danger.risk}+{other}", text, "")
    return list(found.values())


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
        onset=_draw_onset(rng, rules),
        risks=risks,
        present=_in_order(rules, [*present, *_sample(rng, rules.minor_findings, (), _count(rng, MINOR_COUNTS))]),
        absent=tuple(absent),
        absent_risks=_draw_absent_risks(rng, rules, complaint, risks, adult=adult, sex=sex),
    )


def _draw_risks(rng: Random, rules: Rules, complaint: Complaint, *, held_out: bool) -> tuple[str, ...]:
    open_risks = [
        id for id in rules.risks if (id not in BABIES or id in complaint.babies) and id not in complaint.held_out
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
    return not pair & {*BABIES} and pair != {"pregnant", "elderly"}


def _draw_age(rng: Random, complaint: Complaint, risks: Sequence[str]) -> tuple[int, str]:
    if "newborn" in risks:
        return rng.randint(1, 2), "mo"
    if "infant" in risks:
        return rng.randint(3, 11), "mo"
    if "elderly" in risks:
        return rng.randint(76, 92), "yo"
    if "pregnant" in risks:
        return rng.randint(20, 41), "yo"
    if complaint.babies and not risks and rng.random() < CHILD_RATE:
        return rng.randint(4, 12), "yo"
    return rng.randint(20, 64), "yo"


def _draw_onset(rng: Random, rules: Rules) -> str:
    recent = rng.random() < RECENT_RATE
    return rng.choice([id for id, onset in rules.onset.items() if onset.recent == recent])


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
