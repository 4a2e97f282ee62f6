"""What the docs list is what there is."""

from __future__ import annotations

import re
from pathlib import Path

from reason2decide.evaluation.metrics import METRICS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "reason2decide"


def test_every_metric_has_a_row_with_its_range() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (\S+) to (\S+) \|$", (DOCS / "evaluation.md").read_text("utf-8"), re.M)

    def number(value: float) -> str:
        return "∞" if value == float("inf") else f"{value:g}"

    assert sorted(rows) == sorted((metric.name, number(metric.worst), number(metric.best)) for metric in METRICS)


def _anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere_and_every_file_named_is_there() -> None:
    pages = [*ROOT.glob("*.md"), *DOCS.glob("*.md")]
    for path in pages:
        page = path.read_text("utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page):
            name, _, anchor = target.partition("#")
            other = path.parent / name if name else path
            assert other.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in _anchors(other.read_text("utf-8")), f"{path.name}: {target}"
        for name in re.findall(r"\b(?:benchmarks|experiments|tests)/[\w/]+\.(?:py|toml|sh|jsonl)\b", page):
            assert (ROOT / name).is_file(), f"{path.name}: {name}"
    assert len(pages) > 15


def test_every_module_is_in_the_table_of_packages() -> None:
    page = (DOCS / "architecture.md").read_text("utf-8")
    rows = {cells[1].strip().strip("`/"): cells[3] for line in page.splitlines() if len(cells := line.split("|")) == 5}
    for package in ["ground", *(folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists())]:
        folder = PACKAGE if package == "ground" else PACKAGE / package
        modules = {path.stem for path in folder.glob("*.py") if not path.name.startswith("_")}
        inner = {
            f"{path.name}/" for path in folder.iterdir() if (path / "__init__.py").exists() and package != "ground"
        }
        assert set(re.findall(r"`([\w/]+)`", rows[package])) == modules | inner, package


def test_every_module_says_what_it_does_in_its_first_line() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert re.match(r'"""\S.{10,}', path.read_text("utf-8").splitlines()[0]), path
