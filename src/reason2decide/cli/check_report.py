"""Print what `r2d data check` found: tables, then errors and warnings."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import typer

from reason2decide.console import show, visible

if TYPE_CHECKING:
    from reason2decide.data.check import CheckReport
    from reason2decide.data.counts import ContrastCounts

LABELS_SHOWN = 10  # ours: there may be thousands of free-text labels


def print_check(report: CheckReport) -> None:
    """Show a report on the screen."""
    splits = list(report.records)
    _print_table("records", ["", *splits], [["records", *(str(report.records[split]) for split in splits)]])
    if report.open_labels:
        show("labels: each record's own choices\n")
    else:
        totals: Counter[str] = Counter()
        for counts in report.labels.values():
            totals.update(counts)
        rows = [
            [label, *(_count_share(report.labels[split].get(label, 0), report.records[split]) for split in splits)]
            for label in totals
        ]
        _print_table("labels", ["label", *splits], rows)
    rows = [
        [source, split, str(counts.present), str(counts.missing), f"{counts.states_label_share:.0%}"]
        for source, by_split in report.sources.items()
        for split, counts in by_split.items()
    ]
    if rows:
        _print_table("rationales", ["source", "split", "present", "missing", "state their label"], rows)
    rows = [
        [
            source,
            split,
            _count_share(counts.records, report.records[split]),
            str(counts.labels.total()),
            _covered(counts),
        ]
        for source, contrasts in report.contrasts.items()
        for split, counts in contrasts.items()
    ]
    if rows:
        _print_table("contrasts", ["source", "split", "records", "contrasts", "labels argued for"], rows)
    rows = [[kind, *map(str, quantiles.values())] for kind, quantiles in report.lengths.items()]
    _print_table(f"lengths in {report.length_unit}", ["", *next(iter(report.lengths.values()))], rows)
    for message in report.errors:
        typer.secho(visible(f"error: {message}"), fg="red")
    for message in report.warnings:
        typer.secho(visible(f"warning: {message}"), fg="yellow")
    show("invalid: fix the errors before training" if not report.ok else "valid")


def _covered(counts: ContrastCounts) -> str:
    return ", ".join(f"{label} {number}" for label, number in counts.labels.most_common(LABELS_SHOWN))


def _count_share(count: int, total: int) -> str:
    return f"{count} ({count / total:.0%})"


def _print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table: drawn in a terminal, as aligned columns elsewhere."""
    rows = [[visible(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]
    show(title)
    for row in [header, *rows]:
        show("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    show()
