"""A dataset for language models: notes that the test server's rule decides by the label that they name."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

from llm_server import LlmServer

from reason2decide.cli import main
from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.records import LabelSet, Record

LABELS = LabelSet(("home care", "see a doctor", "call an ambulance"))
FINDINGS = ("mild rash", "high fever", "chest pain")


def record(index: int) -> Record:
    """A call of which every fifth asks for another label than the gold one; every third has a nurse's note."""
    label, finding = LABELS.values[index % 3], FINDINGS[index % 3]
    asked = LABELS.values[(index + (index % 5 == 0)) % 3]
    text = f"{20 + index} yo with {finding} since {index % 6 + 1} days, caller says {asked}"
    nurse = {"nurse": f"{finding} x {index % 6 + 1} d"} if index % 3 == 0 else {}
    return Record(f"r{index}", text, label, nurse, group=f"patient {index // 2}", meta={"ward": index % 2})


def write_calls(
    folder: Path,
    change: Callable[[Record], Record] = lambda own: own,
    labels: LabelSet = LABELS,
    counts: tuple[int, int, int] = (24, 12, 12),
) -> DatasetFolder:
    """The calls, each changed as told."""
    ends = [0, counts[0], counts[0] + counts[1], sum(counts)]
    splits = {
        name: [change(record(i)) for i in range(ends[n], ends[n + 1])]
        for n, name in enumerate(("train", "validation", "test"))
    }
    return write_dataset(folder, DatasetInfo("calls", "triage", labels, ("nurse",), {"by": "tests"}), splits)


def marked(words: str, every: int = 1) -> Callable[[Record], Record]:
    """Records of which every so-manieth has these words at the end of its text."""
    return lambda own: replace(own, text=f"{own.text}, {words}") if int(own.id[1:]) % every == 0 else own


def at(server: LlmServer) -> tuple[str, ...]:
    """The options that name a server's model."""
    return ("--base-url", server.base_url, "--model", "rules", "--concurrency", "4")


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def r2d(*arguments: object) -> Ended:
    """`r2d` as a user runs it, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["r2d", *map(str, arguments)]),
    ):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Ended(code, out.getvalue(), err.getvalue())
