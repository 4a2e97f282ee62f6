"""Request bodies of the two interfaces of decision models and of `/v1/explain`.

Sources: System One as transformers 5.23 serves it; decisions as openai-python 3.57 types them; `include`, what it adds
and `/v1/explain`: ours.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from reason2decide.errors import Reason2DecideError

MAX_QUESTIONS = 64  # transformers 5.23 `serve`; OpenAI has 400
MAX_CHOICES = 255  # OpenAI's decisions
MAX_INCLUDE = MAX_CHOICES + 3  # ours: a rationale for every label, and the other three

MAX_ITEMS = 1000  # ours: messages of an input, and parts of a message


def at_most(count: int) -> Any:
    """A bound on a list or an object that is checked before its items are: each of them may be an error of its own."""

    def checked(value: Any) -> Any:
        if isinstance(value, (dict, list)) and len(value) > count:
            raise PydanticCustomError("too_long", "there are more than {count} items; send fewer", {"count": count})
        return value

    return BeforeValidator(checked)


Content = str | dict[str, Any] | list[Any]
Location = tuple[str | int, ...]


class Refused(Reason2DecideError):
    """A request that this model cannot answer as it is; the message quotes nothing of the text."""

    def __init__(self, message: str, location: Location = ("body",), kind: str = "value_error", status: int = 422):
        super().__init__(message)
        self.location, self.kind, self.status = location, kind, status


class TooManyCharacters(Refused):
    """The text has more characters than the server reads."""

    def __init__(self, most: int, location: Location = ("body",)) -> None:
        super().__init__(f"the text is longer than {most} characters; send less", location, "too_large", 413)


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Strict(BaseModel):
    # A misspelt key is reported.
    model_config = ConfigDict(extra="forbid")


class NoulQuestion(_Strict):
    """A yes/no question."""

    type: Literal["noul"]
    instructions: Content | None = None
    criteria: dict[Literal["true", "false"], Content | None] | None = None


class ChoiceQuestion(_Strict):
    """Which of the options applies; they are labels of the model."""

    type: Literal["choice"]
    instructions: Content | None = None
    criteria: Annotated[dict[str, Content | None], Field(min_length=1, max_length=MAX_CHOICES), at_most(MAX_CHOICES)]


class ScoreQuestion(_Strict):
    """Which level applies; each is a label of the model, or begins with one and a colon."""

    type: Literal["score"]
    instructions: Content | None = None
    criteria: Annotated[list[Content], Field(min_length=1, max_length=MAX_CHOICES), at_most(MAX_CHOICES)]


Include = Annotated[
    list[str] | None,
    Field(
        max_length=MAX_INCLUDE,
        description="What to add to the answers: `rationale` (for the answer's own label), `rationale:LABEL` (for "
        "another: the case for it), `prediction_set` (labels that split-conformal prediction cannot rule out), "
        "`deferral` (whether a person should decide).",
    ),
    at_most(MAX_INCLUDE),
]
_NOTE = "45 yo with chest pain for one hour, sweating."


class SystemOneRequest(_Strict):
    """Typed questions about a state. A state that is not text is rendered by `state_text`."""

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
    questions: Annotated[
        dict[str, Annotated[NoulQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]],
        Field(min_length=1, max_length=MAX_QUESTIONS),
        at_most(MAX_QUESTIONS),
    ]
    assets: dict[str, Any] | None = Field(None, max_length=0, description="Images cannot be read: leave it out.")
    include: Include = None


class InputPart(_Wire):
    """A part of a message: its text, or data rendered as text."""

    type: Literal["input_text", "output_text", "input_json", "input_image", "refusal"]
    text: str | None = None
    data: dict[str, Any] | list[Any] | None = None


class InputItem(_Wire):
    """A message, a tool call, or a tool's output."""

    type: Literal["message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"] = (
        "message"
    )
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Annotated[str | list[InputPart] | None, at_most(MAX_ITEMS)] = None
    output: Annotated[str | list[InputPart] | None, at_most(MAX_ITEMS)] = None


class _Named(_Wire):
    name: str | None = None
    instructions: Annotated[str | list[dict[str, Any]] | None, at_most(MAX_ITEMS)] = None


class PredicateQuestion(_Named):
    """Whether a statement is true."""

    type: Literal["predicate"]


class ChoiceOption(_Wire):
    value: str | bool
    description: str | None = None


class ChoicesQuestion(_Named):
    """Which of the choices applies; their values are labels of the model."""

    type: Literal["choice"]
    choices: Annotated[list[ChoiceOption], Field(min_length=1, max_length=MAX_CHOICES), at_most(MAX_CHOICES)]


class Level(_Wire):
    label: str
    description: str | None = None


class LevelsQuestion(_Named):
    """Which level applies; their labels are those of the model."""

    type: Literal["score"]
    levels: Annotated[list[Level], Field(min_length=1, max_length=MAX_CHOICES), at_most(MAX_CHOICES)]


class DecisionsRequest(_Wire):
    """Typed questions about an input. Only messages of users and assistants and tool outputs are read."""

    model_config = ConfigDict(
        extra="ignore",  # such as cache keys, which mean nothing here
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
    input: Annotated[str | list[InputItem], at_most(MAX_ITEMS)]
    questions: Annotated[
        list[Annotated[PredicateQuestion | ChoicesQuestion | LevelsQuestion, Field(discriminator="type")]],
        Field(min_length=1, max_length=MAX_QUESTIONS),
        at_most(MAX_QUESTIONS),
    ]
    include: Include = None


class ExplainRequest(_Strict):
    """A rationale for the decided label, or for a given one."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "triage", "state": _NOTE, "label": "home care", "stream": False}]}
    )

    model: str
    state: Content | None = Field(None, description="What to decide on, as in `/v1/systemone`.")
    text: str | None = Field(None, description="The state under its earlier name; give one of the two.")
    label: str | None = Field(None, description="A label of the model; without it, the decided one.")
    stream: bool = Field(
        True, description="Server-sent events while the rationale is written; otherwise one JSON object."
    )

    @model_validator(mode="after")
    def _one_text(self) -> ExplainRequest:
        if (self.state is None) == (self.text is None):
            raise PydanticCustomError("missing", "expected a 'state', or a 'text' in its place, and not both")
        return self


_REQUESTS: tuple[type[BaseModel], ...] = (
    *(SystemOneRequest, NoulQuestion, ChoiceQuestion, ScoreQuestion),
    *(DecisionsRequest, InputItem, InputPart, PredicateQuestion, ChoicesQuestion, ChoiceOption, LevelsQuestion, Level),
    ExplainRequest,
)
WORDS = frozenset({"body", "header", "path", "choice", "score", "noul", "predicate"}).union(
    *(model.model_fields for model in _REQUESTS)
)  # words that the location of a problem may contain: the interfaces', none of the caller's
