"""How far each fact of a call moves its urgency: by the rules, or weighed by who argues for another level.

A call is decided by where it starts and by moves up and down. Who argues for another level than that of the rules has
the same facts, and gives them other weight. Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reason2decide.data.sources.synthetic_calls.facts import Fact, RuledLevel
from reason2decide.data.sources.synthetic_calls.rules import Rules
from reason2decide.data.words import sentences

DEMANDS = ("red_flags", "danger")


@dataclass(frozen=True)
class Weighed:
    """Facts of one kind, and by how many levels they move the urgency: up, or down where `levels` is negative."""

    kind: str
    facts: tuple[Fact, ...]
    levels: int


@dataclass(frozen=True)
class Weighing:
    """Facts with their weight, in the order the rules apply, and what else is needed to reach the level argued for.

    `rest` is what the facts leave open: levels that only reassurance, or fear of worse, can account for.
    """

    weighed: tuple[Weighed, ...]
    rest: int = 0


def by_rules(decision: RuledLevel, base: int) -> Weighing:
    """The moves by which the rules come from the complaint's level to the decision.

    Args:
        base: level of the complaint alone.
    """
    demanded = [fact for fact in decision.facts if fact.kind in DEMANDS]
    others = {kind: _of_kind(decision.facts, kind) for kind in ("severe", "mild", "risk")}
    moves = {"severe": len(others["severe"]), "mild": -len(others["mild"]), "risk": len(others["risk"])}
    jump = decision.level - base - sum(moves.values())  # up to the gravest demand
    weighed = []
    for kind in dict.fromkeys(fact.kind for fact in demanded):
        weighed.append(Weighed(kind, _of_kind(demanded, kind), jump))
        jump = 0  # the second kind demands the same
    weighed += [Weighed(kind, facts, moves[kind]) for kind, facts in others.items() if facts]
    return Weighing(tuple(weighed))


def argued(natural: Weighing, away: int) -> Weighing:
    """The facts weighed by who argues for a level that is `away` levels above the rules' (below, if negative).

    For less urgency, what raised it is given less weight, the last first; for more, a mild course is given none and the
    first grave fact more.
    """
    weighed, rest = {own.kind: own for own in natural.weighed}, away

    def move(kind: str, levels: int) -> None:
        nonlocal rest
        weighed[kind] = replace(weighed[kind], levels=weighed[kind].levels + levels)
        rest -= levels

    if away < 0:
        for kind in reversed([kind for kind, own in weighed.items() if own.levels > 0]):
            move(kind, -min(-rest, weighed[kind].levels))
        if "mild" in weighed:
            move("mild", rest)
    else:
        if "mild" in weighed:
            move("mild", min(1, rest))
        grave = [kind for kind in weighed if kind != "mild"]
        if grave:
            move(grave[0], rest)
    return Weighing(tuple(weighed.values()), rest)


def level_argued(rationale: str, rules: Rules) -> int | None:
    """The level that a rationale of source `llm` argues for: that of the complaint alone, and all its moves.

    It is read exactly, since the words of levels and moves are those of the rules; the sentence that states the
    decision is not read. None if it names no level to begin with, or leads beyond the labels.
    """
    words = rules.rationale
    level = next((place for place, alone in enumerate(words["level_alone"]) if alone in rationale), None)
    if level is None:
        return None
    for start, end in sentences(rationale):
        sentence = rationale[start:end]
        moved = next((levels for levels, by in enumerate(words["by_levels"]) if by in sentence), 0)
        level += -moved if any(word in sentence for word in words["lowering"]) else moved
    return level if 0 <= level < len(rules.labels) else None


def _of_kind(facts: Sequence[Fact], kind: str) -> tuple[Fact, ...]:
    return tuple(fact for fact in facts if fact.kind == kind)
