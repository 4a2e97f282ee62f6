"""Writes a comparison as files."""

from __future__ import annotations

import json
from pathlib import Path

from reason2decide.console import say, warn
from reason2decide.evaluation.comparison import Comparison
from reason2decide.files import new_file
from reason2decide.report import render_comparison, write_comparison_files


def write_comparison(comparison: Comparison, out: Path, title: str) -> None:
    """Write `comparison.json`, `report.html`, tables and plots into the folder `out`, and tell the warnings."""
    for warning in comparison.warnings:
        warn(warning)
    out.mkdir(parents=True, exist_ok=True)
    contents = {
        "comparison.json": json.dumps(comparison.to_json(), indent=2, ensure_ascii=False),
        "report.html": render_comparison(comparison, title=title),
    }
    for name, content in contents.items():
        with new_file(out / name, force=True) as partial:
            partial.write_text(content, "utf-8")
    write_comparison_files(out, comparison)
    say(f"comparison: {out / 'comparison.json'}, report: {out / 'report.html'}")
