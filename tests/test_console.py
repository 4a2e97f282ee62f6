"""What a progress line says: rate and time left are those of this process, also where a run is resumed."""

from __future__ import annotations

import re

import pytest

from reason2decide import console


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that bars read."""
    time = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: time[0])
    return time


def test_a_resumed_bar_counts_only_what_this_process_did(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.ProgressBar("stage2", 1000, "steps", done=900) as bar:
        now[0] += 20.0
        bar.advance(40)
    found = re.search(r"stage2: (\d+)/1000 steps, ([\d.]+)/s, (\d+) s left", capsys.readouterr().err)
    assert found is not None
    # 40 steps in 20 seconds are 2 a second; 60 are left, which take 30.
    assert found.groups() == ("940", "2.0", "30")


def test_a_bar_from_the_start(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.ProgressBar("import", None) as bar:
        now[0] += 10.0
        bar.advance(5, note="so far")
        bar.advance(5)  # not yet another line
    assert capsys.readouterr().err.splitlines() == ["import: 5 records, 0.5/s · so far"]


def test_data_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    console.warn("label 'a\x1b[2Jb\x9b1A\r\u202ec' is unknown\n\tgo on")
    shown = capsys.readouterr().err
    assert "label 'a\\x1b[2Jb\\x9b1A\\x0d\\x202ec' is unknown\n" in shown and "\x1b[2J" not in shown


def test_a_bar_that_has_not_moved_knows_no_time_left(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.ProgressBar("stage2", 10, "steps", done=4) as bar:
        now[0] += 10.0
        bar.advance(0, note="validating, 50%")
    assert capsys.readouterr().err.splitlines() == ["stage2: 4/10 steps, 0.0/s · validating, 50%"]
