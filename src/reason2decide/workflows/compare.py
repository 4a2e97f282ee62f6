"""Compares systems and writes the results as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from reason2decide.console import say, warn
from reason2decide.evaluation.comparison import Comparison, System, compare
from reason2decide.evaluation.settings import RESAMPLES
from reason2decide.files import new_file
from reason2decide.report import render_comparison, write_comparison_files


def write_comparison(
    systems: Sequence[System], reference: str, out: Path, title: str, *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare systems and write `comparison.json`, `report.html`, tables and plots into the folder `out`.

    Raises:
        DataError: as `comparison.compare`.
    """
    comparison = compare(systems, reference, resamples=resamples, seed=seed)
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
    return comparison
