"""The questions of a request, checked against what the model can answer. Pure functions.

A trained model answers one question, the one it was trained on. So instructions and descriptions are accepted but not
read, and the options of a question must be labels of the model. Questions on the same text share one decision.

| question | answered if | from the label distribution |
|---|---|---|
| choice | the options are labels, in any order | as it is; renormalised, and marked so, if the options are fewer |
| score | the labels are ordinal and the levels are all of them, in their order or the reverse | expected level |
| noul, predicate | the model has two labels, one of `YES` and one of `NO` | the probability of yes |

Sources: as in `wire`; which questions a trained model can answer: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reason2decide.data.records import NO, YES, LabelSet
from reason2decide.model.decision import Decision
from reason2decide.serve.wire import (
    ChoiceQuestion,
    ChoicesQuestion,
    Content,
    DecisionsRequest,
    Location,
    NoulQuestion,
    PredicateQuestion,
    Refused,
    SystemOneRequest,
)


@dataclass(frozen=True)
class Asked:
    """One question: the labels of its options in their order (of a yes/no question: yes, no)."""

    name: str | None
    kind: Literal["choice", "score", "yes_no"]
    labels: tuple[str, ...]
    legend: tuple[Any, ...] = ()  # System One's levels, as received

    def distribution(self, decision: Decision) -> dict[str, float]:
        """P(label | text) over the options: the model's, renormalised if the options are not all labels."""
        found = {label: decision.probabilities[label] for label in self.labels}
        if not self.renormalised(decision):
            return found
        total = sum(found.values())
        # All probabilities may be too small for a float; then nothing is known about the options.
        return {label: p / total if total else 1 / len(found) for label, p in found.items()}

    def renormalised(self, decision: Decision) -> bool:
        """Whether the options leave a label out."""
        return len(self.labels) < len(decision.probabilities)

    def chosen(self, decision: Decision) -> str:
        """The most probable option."""
        found = self.distribution(decision)
        return max(found, key=found.__getitem__)


@dataclass(frozen=True)
class Wanted:
    """What `include` asks for; `labels` are those given as `rationale:LABEL`.

    `checked` says that the reasons of the answers must be written to know whether they are left to a person.
    """

    rationale: bool = False
    prediction_set: bool = False
    deferral: bool = False
    labels: tuple[str, ...] = ()
    checked: bool = False

    def explained(self, asked: Sequence[Asked], decision: Decision) -> list[str]:
        """The labels to write a rationale for, each once."""
        chosen = [question.chosen(decision) for question in asked] if self.rationale or self.checked else []
        return list(dict.fromkeys([*chosen, *self.labels]))

    def most_rationales(self, asked: Sequence[Asked], labels: LabelSet) -> int:
        """Maximum number of labels that `explained` can return, known before the decision."""
        chosen = len({question.labels for question in asked}) if self.rationale or self.checked else 0
        return min(len(labels.values), chosen + len(self.labels))


def wanted(
    include: Sequence[str], labels: LabelSet, *, explains: bool, any_label: bool = True, defers: bool = False
) -> Wanted:
    """What `include` asks for.

    Args:
        explains: whether the model writes rationales; `any_label`: also for labels that it has not decided.
        defers: whether answers whose reasons do not support them are left to a person.

    Raises:
        Refused: an item is unknown or its label is not one of the model's, or the model writes no such rationales.
    """
    plain = {"rationale", "prediction_set", "deferral"}
    others = [item.removeprefix("rationale:").strip() for item in include if item not in plain]
    for index, item in enumerate(include):
        where: Location = ("body", "include", index)
        if item not in plain and not item.startswith("rationale:"):
            raise Refused("expected 'rationale', 'rationale:LABEL', 'prediction_set' or 'deferral'", where)
        if item.startswith("rationale") and not explains:
            raise Refused("this model writes no rationales; leave it out", where)
        if item.startswith("rationale:") and not any_label:
            raise Refused("the rationales of this model do not depend on a label; ask for 'rationale'", where)
    if not set(others) <= set(labels.values):
        raise Refused(
            f"'rationale:LABEL' does not name a label of this model; its labels are: {named(labels)}",
            ("body", "include"),
        )
    return Wanted(
        "rationale" in include,
        "prediction_set" in include,
        "deferral" in include,
        tuple(others),
        checked=defers and explains and "deferral" in include,
    )


def named(labels: LabelSet) -> str:
    """The labels as listed in messages."""
    return ", ".join(map(repr, labels.values))


def systemone_asked(request: SystemOneRequest, labels: LabelSet) -> list[Asked]:
    """The questions of a System One request.

    Raises:
        Refused: the model cannot answer one of them.
    """
    asked = []
    for name, question in request.questions.items():
        where = ("body", "questions", name, question.type)
        if isinstance(question, NoulQuestion):
            asked.append(_yes_no(name, labels, where))
        elif isinstance(question, ChoiceQuestion):
            asked.append(_choice(name, list(question.criteria), labels, (*where, "criteria")))
        else:
            levels = [_level(level, labels) for level in question.criteria]
            asked.append(_score(name, levels, labels, (*where, "criteria"), question.criteria))
    return asked


def decisions_asked(request: DecisionsRequest, labels: LabelSet) -> list[Asked]:
    """The questions of a decisions request.

    Raises:
        Refused: the model cannot answer one of them, or two have the same name.
    """
    names = [question.name for question in request.questions if question.name is not None]
    if len(set(names)) < len(names):
        raise Refused("two questions have the same name; give each its own", ("body", "questions"))
    asked = []
    for index, question in enumerate(request.questions):
        where = ("body", "questions", index, question.type)
        if isinstance(question, PredicateQuestion):
            asked.append(_yes_no(question.name, labels, where))
        elif isinstance(question, ChoicesQuestion):
            values = [choice.value for choice in question.choices]
            asked.append(_choice(question.name, values, labels, (*where, "choices")))
        else:
            levels = [level.label for level in question.levels]
            asked.append(_score(question.name, levels, labels, (*where, "levels"), levels))
    return asked


def _yes_no(name: str | None, labels: LabelSet, where: Location) -> Asked:
    folded = {label.casefold(): label for label in labels.values}
    yes = [folded[word] for word in YES if word in folded]
    no = [folded[word] for word in NO if word in folded]
    if len(labels.values) != 2 or not yes or not no:
        raise Refused(
            "this model cannot answer a yes/no question, as its labels are not yes and no; ask a 'choice' question "
            f"with its labels as options: {named(labels)}",
            where,
        )
    return Asked(name, "yes_no", (yes[0], no[0]))


def _choice(name: str | None, options: Sequence[str | bool], labels: LabelSet, where: Location) -> Asked:
    unknown = [option for option in options if not isinstance(option, str) or option not in labels.values]
    if unknown:
        raise Refused(
            f"{len(unknown)} of {len(options)} options are not labels of this model; use some or all of: "
            f"{named(labels)}",
            where,
        )
    if len(set(options)) < len(options):
        raise Refused("an option occurs twice; give each once", where)
    return Asked(name, "choice", tuple(map(str, options)))


def _score(
    name: str | None, levels: Sequence[str | None], labels: LabelSet, where: Location, legend: Sequence[Any]
) -> Asked:
    if not labels.ordinal:
        raise Refused(
            "this model cannot answer a 'score' question, as its labels have no order; ask a 'choice' question with "
            f"its labels as options: {named(labels)}",
            where,
        )
    given = tuple(levels)
    if given not in (labels.values, labels.values[::-1]):
        raise Refused(f"the levels must be this model's labels in their order or the reverse: {named(labels)}", where)
    return Asked(name, "score", tuple(map(str, given)), tuple(legend))


def _level(level: Content, labels: LabelSet) -> str | None:
    """The label that a System One level names: the level is the label, or begins with it and a colon."""
    if not isinstance(level, str):
        return None
    return next((label for label in labels.values if level == label or level.startswith(f"{label}:")), None)
