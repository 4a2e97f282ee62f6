"""The 31 source attributes that HTI-1 requires of a predictive decision support intervention, and the user's answers.

They are those of 45 CFR 170.315(b)(11)(iv)(B), as listed in the HTI-1 final rule (89 FR 1192, 9 January 2024), in its
order and shortened by us. `model_card` fills them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reason2decide.errors import ConfigError
from reason2decide.syntax import Malformed, parse_toml

Computed = Literal["no", "in part", "whole"]

DEVELOPER = "the developer, who trained this model"
DEPLOYER = "the deploying organisation"
EVALUATOR = "whoever evaluates it on data from another source"
TEST = "an evaluation on the test split of its own dataset"
# Paragraphs (A)(5) to (13), which (B)(4)(ii), (B)(4)(iii) and (B)(6)(iii) refer to.
VARIABLES = (
    "race, ethnicity, language, sexual orientation, gender identity, sex, date of birth, social determinants of "
    "health, health status assessments"
)


@dataclass(frozen=True, slots=True)
class SourceAttribute:
    """One source attribute: its number in the regulation's order, its group, and how it is filled.

    `key` is its name in a file of answers. `computed` says how much of it training and evaluation provide: the whole,
    a part to be completed by an answer, or nothing. `filled_by` names who or what fills the rest.
    """

    number: int
    group: str
    key: str
    attribute: str
    computed: Computed
    filled_by: str


_GROUPS: dict[str, tuple[tuple[str, str, Computed, str], ...]] = {
    "Details and output": (
        ("developer", "Developer: name and contact", "no", DEVELOPER),
        ("funding", "Funding source of the technical development", "no", DEVELOPER),
        ("output_value", "Value that it produces as output", "whole", "training"),
        (
            "output_type",
            "Kind of output: prediction, classification, recommendation, evaluation, analysis or other",
            "whole",
            "training",
        ),
    ),
    "Purpose": (
        ("intended_use", "Intended use", "no", DEVELOPER),
        ("intended_patients", "Intended patient populations", "no", DEVELOPER),
        ("intended_users", "Intended users", "no", DEVELOPER),
        ("decision_role", "Intended role: informs, augments or replaces clinical management", "no", DEVELOPER),
    ),
    "Cautioned out-of-scope use": (
        ("cautioned_uses", "Tasks, situations or populations to be cautious in", "in part", DEVELOPER),
        ("known_limits", "Known risks, inappropriate settings or uses, known limitations", "in part", DEVELOPER),
    ),
    "Development details and input features": (
        ("training_criteria", "Exclusion and inclusion criteria behind the training data", "in part", DEVELOPER),
        ("input_variables", f"Use as input features of {VARIABLES}", "in part", DEVELOPER),
        (
            "training_representativeness",
            "Demographic representativeness by these variables, at least those used as input features",
            "in part",
            DEVELOPER,
        ),
        ("training_relevance", "Relevance of the training data to the intended setting", "no", DEPLOYER),
    ),
    "Fairness in development": (
        ("fairness_approach", "Approach to ensure that the output is fair", "no", DEVELOPER),
        ("bias_approach", "Approaches to manage, reduce or eliminate bias", "no", DEVELOPER),
    ),
    "External validation": (
        (
            "external_data",
            "Data source, clinical setting or environment in which validity and fairness were assessed externally",
            "in part",
            EVALUATOR,
        ),
        ("external_party", "Who did the external testing", "no", EVALUATOR),
        (
            "external_representativeness",
            "Demographic representativeness of the external data, by the variables of attribute 12",
            "in part",
            EVALUATOR,
        ),
        ("external_process", "External validation process", "no", EVALUATOR),
    ),
    "Quantitative measures of performance": (
        ("test_validity", "Validity in test data from the same source as the training data", "whole", TEST),
        (
            "test_fairness",
            "Fairness in test data from the same source as the training data",
            "whole",
            f"{TEST}, with slices by groups of patients",
        ),
        ("external_validity", "Validity in data from a source other than the training data", "in part", EVALUATOR),
        ("external_fairness", "Fairness in data from a source other than the training data", "in part", EVALUATOR),
        (
            "outcomes",
            "References to evaluations of its use on outcomes: morbidity, mortality, length of stay or others",
            "no",
            DEVELOPER,
        ),
    ),
    "Ongoing maintenance": (
        ("validity_monitoring", "How and how often validity is monitored over time", "no", DEPLOYER),
        ("local_validity", "Validity in local data", "no", DEPLOYER),
        ("fairness_monitoring", "How and how often fairness is monitored over time", "no", DEPLOYER),
        ("local_fairness", "Fairness in local data", "no", DEPLOYER),
    ),
    "Update and continued validation or fairness assessment": (
        ("updates", "How and how often it is updated", "in part", DEVELOPER),
        (
            "corrections",
            "How often performance is corrected when risks to validity or fairness are identified",
            "no",
            DEVELOPER,
        ),
    ),
}

SOURCE_ATTRIBUTES: tuple[SourceAttribute, ...] = tuple(
    SourceAttribute(number, group, *row)
    for number, (group, row) in enumerate(((group, row) for group, rows in _GROUPS.items() for row in rows), 1)
)
KEYS = tuple(attribute.key for attribute in SOURCE_ATTRIBUTES)


def read_answers(path: Path) -> dict[str, str]:
    """Read a TOML file of `key = "text"`, with the keys of `SOURCE_ATTRIBUTES`.

    Raises:
        ConfigError: the file is missing or not TOML, keys are unknown (with the nearest valid ones) or values are not
            text, all of them in one message.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; expected answers for the model card, in TOML")
    try:
        content = parse_toml(path.read_bytes())
    except Malformed as error:
        raise ConfigError(f"{path} is {error}") from None
    problems = list(_problems(content))
    if problems:
        raise ConfigError(f"{path}:\n" + "\n".join(f"  - {line}" for line in problems))
    return content


def _problems(content: Mapping[str, object]) -> Iterator[str]:
    for key, value in content.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"keys are {', '.join(KEYS)}"
            yield f"{key!r} is not a source attribute; {hint}"
        elif not isinstance(value, str) or not value.strip():
            given = "empty" if isinstance(value, str) else f"of type {type(value).__name__}"
            yield f"{key} is {given}; expected text, or leave the key out"
