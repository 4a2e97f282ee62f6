"""One exception tree. Every message says what came, what was expected and what to do.

A `UserError` is for the caller to fix: the command line prints it without a traceback and exits with code 2.
Bugs in this package are assertion errors, never one of these.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType


class Reason2DecideError(Exception):
    """Base of everything this package raises on purpose."""


class UserError(Reason2DecideError):
    """Something the user gave or asked for cannot be used."""


class DataError(UserError):
    """A record, a dataset folder or a file to import is invalid."""


class ConfigError(UserError):
    """A training configuration has unknown keys or impossible values."""


class BaseModelError(UserError):
    """A base model cannot be found, reached or used."""


class DivergedError(UserError):
    """A loss became infinite or NaN: the settings make the steps too large."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class UnansweredError(Reason2DecideError):
    """A language model left some calls without an answer; what it answered was used."""


class Interrupted(Reason2DecideError):
    """A signal asked training to stop; nothing was lost."""

    def __init__(self, signal_number: int, where: str) -> None:
        super().__init__(f"interrupted; {where}")
        self.exit_code = 128 + signal_number


class BundleError(UserError):
    """A model bundle is missing, altered, from another version, or not a bundle."""


class OutputError(UserError):
    """An output path already exists or cannot be written."""


class MissingExtraError(UserError):
    """An optional dependency is needed; the message gives the exact `pip install`."""

    def __init__(self, module: str, extra: str, needed_by: str = "this") -> None:
        super().__init__(
            f"{needed_by} needs the Python package {module!r}, which is not installed. "
            f'Install it with: pip install "reason2decide[{extra}]"'
        )


def unknown_key(key: str, known: Sequence[str], other_names: Mapping[str, str] = {}) -> str:
    """Describe an unknown key of a file: suggest the key of that meaning or spelling, or list them all.

    Args:
        other_names: what other programs call a key -> the key.
    """
    near = [other_names[key]] if key in other_names else difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"keys are {', '.join(known)}"
    return f"there is no key {key!r}; {hint}"


def require(module: str, extra: str, needed_by: str = "this") -> ModuleType:
    """Import and return `module`, or raise `MissingExtraError` naming who needs it and the extra that provides it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == module.split(".")[0]:
            raise MissingExtraError(module, extra, needed_by) from None
        raise


class NotComputed(Reason2DecideError):
    """A metric has no value on these examples; the message is the reason, shown in the results."""


class NothingToCount(NotComputed):
    """None of these examples counts for a metric; others may."""
