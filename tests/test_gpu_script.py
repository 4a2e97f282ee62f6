"""The script for a GPU runs on a processor with tiny shapes, so that it runs at the first try where minutes count."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "on_gpu.sh"


def run(out: Path, parts: str, **settings: str) -> subprocess.CompletedProcess[str]:
    small = {"SHAPE": "tiny", "BASES": "tiny", "BATCH": "2", "ROUNDS": "1", "CALLS": "30", "DEVICE": "cpu"}
    env = {**os.environ, **small, "OUT": str(out), "PARTS": parts, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", SCRIPT], env=env | settings, capture_output=True, text=True, check=False)


def test_parts_run_and_save_what_they_print(tmp_path: Path) -> None:
    done = run(tmp_path, "inference bases_one_pass")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "float32 one-pass" in (tmp_path / "inference.txt").read_text()
    assert "examples/s, peak" in (tmp_path / "bases_one_pass.txt").read_text()
    assert "torch" in (tmp_path / "machine.txt").read_text()


def test_a_part_that_fails_is_named_and_the_next_begun(tmp_path: Path) -> None:
    done = run(tmp_path, "bases compiled", BASES="nothing")
    assert done.returncode == 1
    failed = (tmp_path / "failed.txt").read_text()
    assert "bases ended with code 2" in failed and "compiled ended with code 2" in failed
