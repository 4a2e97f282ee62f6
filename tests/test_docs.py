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


def test_every_module_stands_in_its_row_of_the_room_table() -> None:
    page = (DOCS / "architecture.md").read_text("utf-8")
    rows = {cells[1].strip().strip("`/"): cells[3] for line in page.splitlines() if len(cells := line.split("|")) == 5}
    for room in ["ground", *(folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists())]:
        folder = PACKAGE if room == "ground" else PACKAGE / room
        modules = {path.stem for path in folder.glob("*.py") if not path.name.startswith("_")}
        inner = {f"{path.name}/" for path in folder.iterdir() if (path / "__init__.py").exists() and room != "ground"}
        assert set(re.findall(r"`([\w/]+)`", rows[room])) == modules | inner, room


def test_every_module_says_what_it_does_in_its_first_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert re.match(r'"""\S.{10,}', path.read_text("utf-8").splitlines()[0]), path
