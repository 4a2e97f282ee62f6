"""What the docs list is what there is."""

from __future__ import annotations

import re
from pathlib import Path

from reason2decide.evaluation.metrics import METRICS

DOCS = Path(__file__).parents[1] / "docs"
PACKAGE = Path(__file__).parents[1] / "src" / "reason2decide"


def test_every_metric_has_a_row_with_its_range() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (\S+) to (\S+) \|$", (DOCS / "evaluation.md").read_text("utf-8"), re.M)

    def number(value: float) -> str:
        return "∞" if value == float("inf") else f"{value:g}"

    assert sorted(rows) == sorted((metric.name, number(metric.worst), number(metric.best)) for metric in METRICS)


def test_every_module_has_its_phrase_in_the_architecture() -> None:
    table = "\n".join(line for line in (DOCS / "architecture.md").read_text("utf-8").splitlines() if line[:3] == "| `")
    named = set(re.findall(r"`([\w/.]+)`", table))
    for path in [*PACKAGE.glob("*.py"), *(folder for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists())]:
        if not path.name.startswith("_"):
            assert {path.name, f"{path.name}/"} & named, f"{path.name} has no phrase in docs/architecture.md"
