"""The wire: what the two interfaces of decision models and `/v1/explain` say, as types and pure functions.

A trained model answers one question, the one it was trained on. So instructions and descriptions are accepted and not
read, and the options of a question must be labels of the model. Questions on one text share one decision.

| question | answered where | from the label distribution |
|---|---|---|
| choice | the options are labels, in any order | as it is; over the options, and said so, where they are fewer |
| score | the labels are ordinal and the levels are all of them, in their order or the reverse | expected level |
| noul, predicate | the model has two labels, one of `YES` and one of `NO` | the probability of yes |

Sources: System One as transformers 5.23 serves it; decisions as openai-python 3.57 types them; `include`, what it
brings and `/v1/explain`: ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from reason2decide.errors import Reason2DecideError
from reason2decide.records import LabelSet
from reason2decide.serve.served_model import Decision

MAX_QUESTIONS = 64  # transformers 5.23 `serve`; OpenAI has 400
MAX_CHOICES = 255  # OpenAI's decisions
MAX_VALUES = 10_000  # values of a state that is no plain text: OpenAI's decisions
MAX_INCLUDE = MAX_CHOICES + 3  # ours: a rationale for every label, and the other three
YES, NO = ("yes", "true"), ("no", "false")  # ours: the labels, in any case, of a yes/no question

Content = str | dict[str, Any] | list[Any]
Location = tuple[str | int, ...]


class Refused(Reason2DecideError):
    """A request that this model cannot answer as it stands; the message holds nothing of the text."""

    def __init__(self, message: str, location: Location = ("body",), kind: str = "value_error", status: int = 422):
        super().__init__(message)
        self.location, self.kind, self.status = location, kind, status


# ---- Requests


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Strict(BaseModel):
    # A misspelt key says so.
    model_config = ConfigDict(extra="forbid")


class NoulQuestion(_Strict):
    """A yes/no question."""

    type: Literal["noul"]
    instructions: Content | None = None
    criteria: dict[Literal["true", "false"], Content | None] | None = None


class ChoiceQuestion(_Strict):
    """Which of the options; they are labels of the model."""

    type: Literal["choice"]
    instructions: Content | None = None
    criteria: dict[str, Content | None] = Field(min_length=1, max_length=MAX_CHOICES)


class ScoreQuestion(_Strict):
    """Which level; each is a label of the model, or begins with one and a colon."""

    type: Literal["score"]
    instructions: Content | None = None
    criteria: list[Content] = Field(min_length=1, max_length=MAX_CHOICES)


Include = Annotated[
    list[str] | None,
    Field(
        max_length=MAX_INCLUDE,
        description="What to add to the answers: `rationale` (for the answer's own label), `rationale:LABEL` (for "
        "another: why not that one?), `prediction_set` (labels that split-conformal prediction cannot rule out), "
        "`deferral` (whether a person should decide).",
    ),
]
_NOTE = "45 yo with chest pain for one hour, sweating."


class SystemOneRequest(_Strict):
    """Typed questions about a state. A state that is no text is rendered by `state_text`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "triage",
                    "state": _NOTE,
                    "questions": {
                        "disposition": {
                            "type": "choice",
                            "criteria": {"home care": "can wait", "call an ambulance": "cannot wait"},
                        }
                    },
                    "include": ["rationale", "deferral"],
                }
            ]
        }
    )

    model: str
    state: Content
    questions: dict[str, Annotated[NoulQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]] = Field(
        min_length=1, max_length=MAX_QUESTIONS
    )
    assets: dict[str, Any] | None = Field(None, max_length=0, description="Images cannot be read: leave it out.")
    include: Include = None


class InputPart(_Wire):
    """A part of a message: its text, or data rendered as text."""

    type: Literal["input_text", "output_text", "input_json", "input_image", "refusal"]
    text: str | None = None
    data: dict[str, Any] | list[Any] | None = None


class InputItem(_Wire):
    """A message, or a tool's call or output."""

    type: Literal["message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"] = (
        "message"
    )
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    output: str | list[InputPart] | None = None


class _Named(_Wire):
    name: str | None = None
    instructions: str | list[dict[str, Any]] | None = None


class PredicateQuestion(_Named):
    """Whether a statement is true."""

    type: Literal["predicate"]


class ChoiceOption(_Wire):
    value: str | bool
    description: str | None = None


class ChoicesQuestion(_Named):
    """Which of the choices; their values are labels of the model."""

    type: Literal["choice"]
    choices: list[ChoiceOption] = Field(min_length=1, max_length=MAX_CHOICES)


class Level(_Wire):
    label: str
    description: str | None = None


class LevelsQuestion(_Named):
    """Which level; their labels are those of the model."""

    type: Literal["score"]
    levels: list[Level] = Field(min_length=1, max_length=MAX_CHOICES)


class DecisionsRequest(_Wire):
    """Typed questions about an input. Of messages, what users and assistants said and tools returned is read."""

    model_config = ConfigDict(
        extra="ignore",  # cache keys and such, which mean nothing here
        json_schema_extra={
            "examples": [
                {
                    "model": "triage",
                    "input": _NOTE,
                    "questions": [
                        {
                            "type": "choice",
                            "name": "disposition",
                            "instructions": "Where should this patient go?",
                            "choices": [{"value": "home care"}, {"value": "call an ambulance"}],
                        }
                    ],
                    "include": ["rationale"],
                }
            ]
        },
    )

    model: str
    input: str | list[InputItem]
    questions: list[Annotated[PredicateQuestion | ChoicesQuestion | LevelsQuestion, Field(discriminator="type")]] = (
        Field(min_length=1, max_length=MAX_QUESTIONS)
    )
    include: Include = None


class ExplainRequest(_Strict):
    """A rationale for the decided label, or for a given one."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "triage", "text": _NOTE, "label": "home care", "stream": False}]}
    )

    model: str
    text: str
    label: str | None = Field(None, description="A label of the model; without it, the one it decides on.")
    stream: bool = Field(True, description="Server-sent events while it is written; else one JSON object.")


_REQUESTS: tuple[type[BaseModel], ...] = (
    *(SystemOneRequest, NoulQuestion, ChoiceQuestion, ScoreQuestion),
    *(DecisionsRequest, InputItem, InputPart, PredicateQuestion, ChoicesQuestion, ChoiceOption, LevelsQuestion, Level),
    ExplainRequest,
)
WORDS = frozenset({"body", "header", "path", "choice", "score", "noul", "predicate"}).union(
    *(model.model_fields for model in _REQUESTS)
)  # what the place of a problem may be called: words of the interfaces, and none of the caller's


# ---- What is asked, checked against a model


@dataclass(frozen=True)
class Asked:
    """One question: the labels of its options in their order (of a yes/no question: yes, no)."""

    name: str | None
    kind: Literal["choice", "score", "yes_no"]
    labels: tuple[str, ...]
    legend: tuple[Any, ...] = ()  # of System One's levels, as they came

    def distribution(self, decision: Decision) -> dict[str, float]:
        """P(label | text) over the options: the model's own, renormalised where the options are not all labels."""
        found = {label: decision.probabilities[label] for label in self.labels}
        if not self.renormalised(decision):
            return found
        total = sum(found.values())
        # Probabilities may all be too small for a float; then nothing is known of the options.
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
    """What `include` asks for; `labels` are those of `rationale:LABEL`."""

    rationale: bool = False
    prediction_set: bool = False
    deferral: bool = False
    labels: tuple[str, ...] = ()

    def explained(self, asked: Sequence[Asked], decision: Decision) -> list[str]:
        """The labels to write a rationale for, each once."""
        own = [question.chosen(decision) for question in asked] if self.rationale else []
        return list(dict.fromkeys([*own, *self.labels]))

    def most_rationales(self, asked: Sequence[Asked], labels: LabelSet) -> int:
        """How many `explained` may name, known before the decision."""
        own = len({question.labels for question in asked}) if self.rationale else 0
        return min(len(labels.values), own + len(self.labels))


def wanted(include: Sequence[str], labels: LabelSet, *, explains: bool) -> Wanted:
    """What `include` asks for.

    Raises:
        Refused: an item is unknown, names no label, or the model writes no rationales.
    """
    plain = {"rationale", "prediction_set", "deferral"}
    others = [item.removeprefix("rationale:").strip() for item in include if item not in plain]
    for index, item in enumerate(include):
        where: Location = ("body", "include", index)
        if item not in plain and not item.startswith("rationale:"):
            raise Refused("expected 'rationale', 'rationale:LABEL', 'prediction_set' or 'deferral'", where)
        if item.startswith("rationale") and not explains:
            raise Refused("this model writes no rationales; leave it out", where)
    if not set(others) <= set(labels.values):
        raise Refused(
            f"'rationale:LABEL' names no label of this model, which are: {named(labels)}", ("body", "include")
        )
    return Wanted("rationale" in include, "prediction_set" in include, "deferral" in include, tuple(others))


def named(labels: LabelSet) -> str:
    """The labels as messages name them."""
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
        Refused: the model cannot answer one of them, or two have one name.
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
            "this model cannot answer a yes/no question, as its labels are no yes and no; ask a 'choice' question "
            f"with its labels as options: {named(labels)}",
            where,
        )
    return Asked(name, "yes_no", (yes[0], no[0]))


def _choice(name: str | None, options: Sequence[str | bool], labels: LabelSet, where: Location) -> Asked:
    unknown = [option for option in options if not isinstance(option, str) or option not in labels.values]
    if unknown:
        raise Refused(
            f"{len(unknown)} of {len(options)} options are no labels of this model; use some or all of: "
            f"{named(labels)}",
            where,
        )
    if len(set(options)) < len(options):
        raise Refused("an option is there twice; name each once", where)
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
    """The label that a level of System One names: it is one, or begins with one and a colon."""
    if not isinstance(level, str):
        return None
    return next((label for label in labels.values if level == label or level.startswith(f"{label}:")), None)


# ---- Text


def state_text(state: Content) -> str:
    """The text of a state: a string is the text; else one line `key: value` for each value that is not null.

    The key is the way to the value, keys joined by spaces; items of a list stand under the list's key, or alone where
    it has none. Values that are no strings are written as JSON.

    Raises:
        Refused: it holds too many values.
    """
    if isinstance(state, str):
        return state
    lines = []
    for line in _lines(state, ""):
        lines.append(line)
        if len(lines) > MAX_VALUES:
            raise Refused(f"the text holds more than {MAX_VALUES} values; send fewer, or plain text")
    return "\n".join(lines)


def _lines(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _lines(inner, f"{key} {name}".strip())
    elif isinstance(value, list):
        for inner in value:
            yield from _lines(inner, key)
    elif value is not None:
        text = value if isinstance(value, str) else json.dumps(value)
        yield f"{key}: {text}" if key else text


def input_text(given: str | Sequence[InputItem]) -> str:
    """The text of a decisions input: of messages, what users and assistants said and what tools returned, in lines.

    Instructions of systems and developers, and calls of tools, are no part of it.

    Raises:
        Refused: an image is among the parts.
    """
    if isinstance(given, str):
        return given
    texts = []
    for index, item in enumerate(given):
        said = item.content if item.type == "message" and item.role in ("user", "assistant") else None
        for part in (said, item.output):
            texts += [part] if isinstance(part, str) else [_part(one, index) for one in part or ()]
    return "\n".join(text for text in texts if text)


def _part(part: InputPart, index: int) -> str:
    if part.type == "input_image":
        raise Refused("this model reads text only; leave images out", ("body", "input", index))
    return state_text(part.data) if part.type == "input_json" and part.data is not None else part.text or ""
