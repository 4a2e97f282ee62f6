"""Parse JSON and TOML from files of users; whatever is wrong with one is a single kind of error with one line."""

from __future__ import annotations

import json
import tomllib
from typing import Any


def storable(text: str) -> str:
    """The text with a question mark for each unpaired surrogate, which JSON can express and UTF-8 cannot.

    Programs that cut a string in the middle of an emoji send such halves; tokenizers and databases refuse them.
    """
    return text.encode("utf-8", "replace").decode()


class Malformed(ValueError):
    """A text is not valid JSON or TOML, or not one that can be parsed in bounded time; the message says which."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        Malformed: not UTF-8, not JSON, nested too deep, or with a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8 ({error.reason} at byte {error.start}); convert the file first") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise Malformed(f"not valid JSON ({error.msg} at {line}column {error.colno})") from None
    except RecursionError:
        raise Malformed("not usable JSON: it is nested too deep") from None
    except ValueError:
        raise Malformed("not usable JSON: a number has too many digits") from None


def parse_toml(text: str | bytes) -> dict[str, Any]:
    """The table of a TOML text.

    Raises:
        Malformed: not UTF-8, not TOML, nested too deep, or with a number of thousands of digits.
    """
    try:
        return tomllib.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8 ({error.reason} at byte {error.start}); convert the file first") from None
    except tomllib.TOMLDecodeError as error:
        raise Malformed(f"not valid TOML: {error}") from None
    except RecursionError:
        raise Malformed("not usable TOML: it is nested too deep") from None
    except ValueError:
        raise Malformed("not usable TOML: a number has too many digits") from None
