"""Settings of an evaluation: plain values, the same on the command line, in a file and in Python.

The options of `r2d evaluate` and the keys of an experiment's `[evaluation]` are generated from this class; it imports
nothing slow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import tomli_w

from reason2decide.errors import ConfigError, unknown_key
from reason2decide.model.operating_point import ERROR_RATE, MISCOVERAGE
from reason2decide.model.reading import INPUT_TOKENS_HELP, LEAST_INPUT, LONG_TEXTS_HELP, LongTexts, ReadingSettings
from reason2decide.model.reasons import ReasonSettings
from reason2decide.syntax import Malformed, parse_toml

IntervalMethod = Literal["percentile", "bca"]
RESAMPLES = 1000  # ours: the interval's ends then move by about 2 % of its width from seed to seed
PROBED_RECORDS = 500  # ours: each needs up to two new rationales; shares are then accurate to about 4 points


@dataclass(frozen=True)
class Settings(ReasonSettings):
    """How to evaluate a split.

    Raises:
        ConfigError: an impossible value; the message names it.
    """

    split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    rationale_source: str | None = field(
        default=None,
        metadata={
            "help": "Source of the gold rationales to compare with; default: the one last trained on.",
            "metavar": "SOURCE",
        },
    )
    slices: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Also report every metric by a metadata column, or by `length`; repeatable.",
            "flag": "--slice",
            "metavar": "COLUMN[:EDGE,...]",
        },
    )
    costs: Path | None = field(
        default=None, metadata={"help": "CSV with the cost of each mistake: gold labels as rows, predicted as columns."}
    )
    error_rate: float = field(
        default=ERROR_RATE,
        metadata={
            "help": "Target error rate among decisions that are not deferred; its threshold is set on validation.",
            "min": 0,
            "max": 1,
        },
    )
    miscoverage: float = field(
        default=MISCOVERAGE,
        metadata={"help": "Share of prediction sets allowed to miss the gold label.", "min": 0, "max": 1},
    )
    bertscore_encoder: str | None = field(
        default=None,
        metadata={"help": "Encoder for BERTScore: a folder, a hub name or `minilm`.", "metavar": "ENCODER"},
    )
    bertscore_layer: int | None = field(
        default=None, metadata={"help": "Encoder layer for BERTScore; default: at 3/4 of its depth.", "min": 0}
    )
    bertscore_baseline: Path | None = field(
        default=None, metadata={"help": "Baseline file in bert-score's format, to rescale BERTScore."}
    )
    bertscore_idf: bool = field(default=False, metadata={"help": "Weight BERTScore's tokens by their rarity."})
    long_texts: LongTexts = field(default="decide", metadata={"help": LONG_TEXTS_HELP})
    input_tokens: int | None = field(default=None, metadata={"help": INPUT_TOKENS_HELP, "min": LEAST_INPUT})
    probed: int = field(
        default=PROBED_RECORDS,
        metadata={"help": "Number of records for which to ask the model more about its rationales.", "min": 0},
    )
    insertions: int = field(
        default=0,
        metadata={"help": "Number of words to insert into each of these texts, one at a time, for phi-CCT.", "min": 0},
    )
    interval: IntervalMethod = field(default="percentile", metadata={"help": "Bootstrap interval: percentile or bca."})
    resamples: int = field(default=RESAMPLES, metadata={"help": "Bootstrap resamples for the intervals.", "min": 1})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap and the probes.", "min": 0})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval not in ("percentile", "bca"):
            raise ConfigError(f"interval = {self.interval!r}: expected percentile or bca")
        for name in ("error_rate", "miscoverage"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: expected a number from 0 to 1")
        ReadingSettings(self.long_texts, self.input_tokens)  # an impossible one is refused
        for name, least in (("probed", 0), ("insertions", 0), ("resamples", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: expected a whole number of at least {least}")

    def to_toml(self) -> str:
        """The content of a file for `load_settings`, wherever it lies; settings that are None are left out."""
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        plain = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in values.items()}
        return tomli_w.dumps({name: value for name, value in plain.items() if value is not None})


DEFAULT_SETTINGS = Settings()
_AT_USE = tuple(own.name for part in (ReasonSettings, ReadingSettings) for own in fields(part))
# Settings of what the model is asked; of decisions made before there is nobody to ask.
ASKING = (*_AT_USE, "probed", "insertions")
# Settings that a model is loaded with (`Predictor.settings`).
LOADING = (*_AT_USE, "error_rate", "miscoverage")


def require_unasked(given: Mapping[str, str]) -> None:
    """Raise `ConfigError` if a setting asks a model about decisions made before; `given` are setting -> as written."""
    asking = [written for name, written in given.items() if name in ASKING]
    if asking:
        raise ConfigError(
            f"{', '.join(asking)}: decisions made before (predictions, parts) are measured as they are, and the model "
            "is not asked; leave it out, or evaluate the bundle"
        )


def require_not_loaded(given: Iterable[str]) -> None:
    """Raise `ConfigError` if a setting is one that a loaded model has already."""
    fixed = [name for name in given if name in LOADING]
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)}: a loaded model decides and explains as it was loaded; give these to `load`, or give "
            "the model's folder"
        )


def parse_settings(content: Mapping[str, Any], where: str) -> Settings:
    """Settings from the content of a file; `where` begins the error message.

    Raises:
        ConfigError: unknown keys or impossible values, all in one message.
    """
    from pydantic import TypeAdapter, ValidationError  # here, since importing it takes long

    known = [setting.name for setting in fields(Settings)]
    problems = [unknown_key(key, known) for key in content if key not in known]
    values = {}
    for key in (key for key in content if key in known):
        try:
            adapter: Any = TypeAdapter(get_type_hints(Settings)[key])
            values[key] = adapter.validate_python(content[key])
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            problems.append(f"{key} = {content[key]!r}: {message[0].lower()}{message[1:]}")
    try:
        settings = Settings(**values)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError(f"{where}:\n" + "\n".join(f"  - {line}" for line in problems))
    return settings


def load_settings(path: Path) -> Settings:
    """Settings from a TOML file.

    Raises:
        ConfigError: the file is missing or not TOML, or as `parse_settings`.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; expected evaluation settings in TOML")
    try:
        content = parse_toml(path.read_bytes())
    except Malformed as error:
        raise ConfigError(f"{path} is {error}") from None
    return parse_settings(with_paths_from(content, path.parent), str(path))


def with_paths_from(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The content of a file whose relative paths start at `folder`."""
    paths = [key for key in ("costs", "bertscore_baseline") if isinstance(content.get(key), str)]
    return {**content, **{key: str(folder / content[key]) for key in paths}}
