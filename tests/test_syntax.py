"""JSON and TOML of users: whatever is wrong with one is a message, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from reason2decide.errors import ConfigError
from reason2decide.evaluation.settings import load_settings
from reason2decide.report.source_attributes import read_answers
from reason2decide.syntax import Malformed, parse_json, parse_toml
from reason2decide.training.config_file import load_config

DEEP, LONG = 100_000, 5000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * DEEP, "not usable JSON: it is nested too deep"),
        ('{"a": ' * DEEP, "not usable JSON: it is nested too deep"),
        ("1" * LONG, "not usable JSON: a number has too many digits"),
        (b"\xff", r"not UTF-8 \(.* at byte 0\); convert the file first"),
        ('{"a": 1,\n "b"}', r"not valid JSON \(.* at line 2, column 5\)"),
        ("", r"not valid JSON \(Expecting value at column 1\)"),
    ],
)
def test_json(text: str | bytes, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        parse_json(text)
    assert parse_json(b'{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * DEEP, "nested too deep"),
        ("a = " + "1" * LONG, "not usable TOML: a number has too many digits"),
        (b"a = '\xff'", "not UTF-8"),
        ("a = ", "not valid TOML"),
    ],
)
def test_toml(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=message):
        parse_toml(text)
    file = tmp_path / "f.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (load_config, load_settings, read_answers):
        with pytest.raises(ConfigError, match=f"f.toml is .*{message}"):
            read(file)


def test_a_byte_order_mark_is_no_part_of_toml() -> None:
    assert parse_toml(b"\xef\xbb\xbfa = 1") == {"a": 1}
