"""Options of the command line are the fields of the settings they fill: same names, defaults, types and bounds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from reason2decide.cli import app
from reason2decide.cli.options import with_options
from reason2decide.errors import ConfigError
from reason2decide.evaluation.settings import Settings, load_settings, parse_settings
from reason2decide.serve.settings import ServeSettings

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(("command", "settings"), [("evaluate", Settings), ("serve", ServeSettings)])
def test_every_described_field_is_an_option_with_its_default(command: str, settings: type[Any]) -> None:
    options = {option.name: option for option in COMMANDS[command].params}
    described = [field for field in dataclasses.fields(settings) if "help" in field.metadata]
    assert len(described) > 8
    for field in described:
        option = options[field.name]
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert option.default == default and option.help == field.metadata["help"], field.name
        assert field.metadata["help"][0].isupper() and field.metadata["help"].endswith("."), field.name


def test_no_help_loses_words_in_brackets_when_it_is_shown() -> None:
    commands = [typer.main.get_command(app)]
    for command in commands:
        commands.extend(getattr(command, "commands", {}).values())
        for text in [command.help, *(getattr(option, "help", None) for option in command.params)]:
            assert Text.from_markup(text or "").plain == (text or "").replace("\\[", "["), text
    assert len(commands) > 20


def test_what_is_typed_arrives_as_one_object() -> None:
    given: list[Settings] = []

    @with_options("settings", Settings)
    def command(name: str, settings: Settings) -> None:
        """A command."""
        given.append(settings)

    program = typer.Typer()
    program.command()(command)
    words = "x --slice age:18 --slice sex --probed 3 --interval bca --bertscore-idf"
    assert CliRunner().invoke(program, words.split()).exit_code == 0
    assert given == [Settings(slices=("age:18", "sex"), probed=3, interval="bca", bertscore_idf=True)]
    assert CliRunner().invoke(program, ["x", "--error-rate", "2"]).exit_code == 2
    assert CliRunner().invoke(program, ["x", "--interval", "wide"]).exit_code == 2


def test_settings_go_to_a_file_and_back(tmp_path: Path) -> None:
    settings = Settings(split="validation", slices=("sex",), costs=tmp_path / "costs.csv", probed=0, error_rate=0.05)
    (tmp_path / "settings.toml").write_text(settings.to_toml())
    assert load_settings(tmp_path / "settings.toml") == settings
    # A relative path means the same from wherever the file is read.
    (tmp_path / "other.toml").write_text(Settings(costs=Path("costs.csv")).to_toml())
    assert load_settings(tmp_path / "other.toml").costs == Path("costs.csv").absolute()


def test_paths_in_a_file_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('costs = "costs.csv"\nbertscore_encoder = "minilm"\n')
    found = load_settings(tmp_path / "settings.toml")
    assert found.costs == tmp_path / "costs.csv" and found.bertscore_encoder == "minilm"


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        parse_settings({"slice": ["sex"], "probed": "many", "interval": "wide"}, "here")
    lines = str(told.value).splitlines()
    assert lines[0] == "here:" and "there is no key 'slice'; did you mean 'slices'?" in lines[1]
    assert "probed = 'many'" in lines[2] and "interval = 'wide'" in lines[3]
    with pytest.raises(ConfigError, match="error_rate = 2"):
        parse_settings({"error_rate": 2}, "here")
    (tmp_path / "bad.toml").write_text("split = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings(tmp_path / "bad.toml")
