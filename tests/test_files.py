"""Files and folders appear whole, for their owner, and are replaced at once."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from serving import triage_bundle

from reason2decide import files
from reason2decide.files import new_file, new_folder

MARKER = "marker.toml"


def write(out: Path, content: str, *, force: bool = False) -> None:
    with new_folder(out, MARKER, force=force) as folder:
        (folder / MARKER).write_text(content)


def test_a_file_that_stands_alone_is_its_owner_s(tmp_path: Path) -> None:
    with new_file(tmp_path / "predictions.jsonl") as partial:
        partial.write_text("text")
    assert stat.S_IMODE((tmp_path / "predictions.jsonl").stat().st_mode) == 0o600


@pytest.mark.parametrize("mask", ["022", "027", "077"])
def test_folders_obey_the_umask(mask: str, tmp_path: Path) -> None:
    program = (
        "import os; os.umask(0o{}); from pathlib import Path; from reason2decide.files import new_folder\n"
        "with new_folder(Path({!r}), 'm') as folder: (folder / 'm').write_text('')"
    )
    subprocess.run([sys.executable, "-c", program.format(mask, str(tmp_path / "out"))], check=True)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~int(mask, 8)
    assert stat.S_IMODE((tmp_path / "out" / "m").stat().st_mode) == 0o666 & ~int(mask, 8)


def test_a_replaced_folder_is_there_at_every_moment(tmp_path: Path) -> None:
    """So a kill at any moment finds the old one or the new one."""
    out = tmp_path / "out"
    write(out, "0")
    missing, done = 0, threading.Event()

    def watch() -> None:
        nonlocal missing
        while not done.is_set():
            missing += not (out / MARKER).exists()

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(200):
        write(out, str(number), force=True)
    done.set()
    watcher.join()
    assert missing == 0 and (out / MARKER).read_text() == "199"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_the_system_s_exchange_folders_are_replaced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:
        """A C library without `renameat2`, such as that of macOS."""

    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: Other())
    write(tmp_path / "out", "old")
    write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / MARKER).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_sigterm_leaves_nothing_half_written(tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"text": "40 yo with chest pain since 2 days"}\n' * 20_000)
    command = [sys.executable, "-m", "reason2decide", "predict", str(triage_bundle()), str(cases)]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "out.jsonl")], stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert any(".partial-" in path.name for path in tmp_path.iterdir())
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["cases.jsonl"]


def test_what_is_kept_is_in_the_new_folder_too(tmp_path: Path) -> None:
    """A dataset that is written again keeps the log of what language models were paid for."""
    out = tmp_path / "data"
    with new_folder(out, "marker") as folder:
        (folder / "marker").write_text("old")
    (out / "calls.sqlite").write_text("paid")
    (out / "other").write_text("not kept")
    with new_folder(out, "marker", force=True, keep="calls.sqlite*") as folder:
        (folder / "marker").write_text("new")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"marker": "new", "calls.sqlite": "paid"}
