"""Add a rationale source to a dataset: ask about every record once, apply the gates, and write in order."""

from __future__ import annotations

import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from reason2decide.console import say
from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.defaults import CALL_LOG
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import DataError
from reason2decide.files import new_folder, require_absent
from reason2decide.llm.client.calls import Call, Failure, ModelAnswer
from reason2decide.llm.client.client import Client
from reason2decide.llm.prompt_files import Prompt
from reason2decide.llm.settling import announce_cost, counts_in_words, host, logged, settle
from reason2decide.llm.teach.gates import GATES

FAILURES = "rationale_failures.jsonl"


@dataclass(frozen=True)
class Reading:
    """The result of an answer: a rationale, or the reason why there is none; `notes` are kept either way.

    `notes` go into the record's `meta`, by name and then by source.
    """

    rationale: str | None
    reason: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


class SourceWriter(ABC):
    """Writes rationales, those of a new source by default: asks about a record, and reads the answers."""

    source: str
    prompt: Prompt
    noun = "rationales"

    def prepared(self, info: DatasetInfo) -> DatasetInfo:
        """The description of the dataset that is written, given that of the one read; here with the new source.

        Raises:
            DataError: the source cannot be added to it.
        """
        if self.source in info.rationale_sources:
            raise DataError(
                f"the dataset already has rationales of source {self.source!r}, which would be lost; give the new "
                "source another name"
            )
        return replace(info, rationale_sources=(*info.rationale_sources, self.source))

    @abstractmethod
    def calls(self, record: Record, labels: LabelSet) -> Mapping[str, Call]:
        """The calls about a record by the label that each is about; none if there is nothing to ask."""

    @abstractmethod
    def read(self, record: Record, labels: LabelSet, label: str, answer: ModelAnswer) -> Reading:
        """Read the answer to the call about a label."""

    def placed(self, record: Record, label: str, rationale: str) -> Record:
        """The record with what was written for a label."""
        return replace(record, rationales={**record.rationales, self.source: rationale})

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings for the dataset's provenance."""

    def found(self) -> dict[str, Any]:
        """Findings from all answers together, for provenance and for the user; nothing by default."""
        return {}


@dataclass(frozen=True)
class WrittenSource:
    """The new dataset, the number of rationales `written`, and of those not written by gate or failure."""

    dataset: DatasetFolder
    written: int
    gates: Mapping[str, int]
    failures: Mapping[str, int]
    found: Mapping[str, Any]


def write_source(
    client: Client,
    dataset_path: Path,
    out: Path,
    writer: SourceWriter,
    *,
    splits: Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
) -> WrittenSource | None:
    """Write to `out` the dataset at `dataset_path` with what the writer adds; None after a dry run.

    A record whose rationale fails a gate, or whose call fails, keeps its other rationales; `FAILURES` in `out` lists
    its id and the reason. One record is in memory at a time.

    Args:
        splits: the splits to write rationales for, all by default; the others are copied.

    Raises:
        DataError: as `SourceWriter.prepared`; its provenance column already exists, a split is missing, or no rationale
            passes.
        OutputError: `out` exists and `force` is false.
        BudgetReached, EndpointError: as `Client.run`; nothing is written, and all answers received are in the log.
    """
    require_absent(out, "dataset.toml", force=force)
    dataset = DatasetFolder.open(dataset_path)
    dataset.verify()
    provenance = dict(dataset.info.provenance)
    info = replace(writer.prepared(dataset.info), provenance=provenance)
    labels = dataset.info.labels
    chosen = tuple(dict.fromkeys(splits)) or tuple(dataset.hashes)
    records = {split: dataset.split(split) for split in chosen}  # an unknown split raises here

    def calls() -> Iterator[Call]:
        for split in chosen:
            for record in records[split]:
                yield from writer.calls(record, labels).values()

    expected = announce_cost(client, calls())
    if dry_run:
        return None
    failed = settle(client, calls(), f"writing {writer.source}", expected.calls + expected.cached)

    def contents(split: str) -> Iterator[Record]:
        if split not in chosen:
            yield from dataset.split(split)
            return
        for record in records[split]:
            yield tally.add(split, record, labels)
        # The counts are known only now; `write_dataset` writes the provenance after the records.
        provenance.update(_with(provenance, writer.noun, writer.source, tally.provenance(chosen)))

    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as unwritten,
        new_folder(out, "dataset.toml", force=force, keep=f"{CALL_LOG}*") as folder,
    ):
        tally = _Tally(client, writer, failed, unwritten)
        write_dataset(folder, info, {split: contents(split) for split in dataset.hashes})
        if not tally.written:
            reasons = counts_in_words(tally.gates + tally.failures) or "no calls were made"
            what = writer.noun.removesuffix("s")
            raise DataError(f"no {what} of source {writer.source!r} could be written: {reasons}; nothing was saved")
        unwritten.seek(0)
        with (folder / FAILURES).open("w", encoding="utf-8") as stream:
            shutil.copyfileobj(unwritten, stream)
    say(f"wrote {tally.written} {writer.noun} of source {writer.source!r} to {out}")
    if tally.gates or tally.failures:
        say(f"not written: {counts_in_words(tally.gates + tally.failures)}; {out / FAILURES} lists their ids")
    return WrittenSource(DatasetFolder.open(out), tally.written, tally.gates, tally.failures, writer.found())


class _Tally:
    """Adds answers to records, counts the outcomes, and writes the ids of those without one to `unwritten`."""

    def __init__(self, client: Client, writer: SourceWriter, failed: Mapping[str, Failure], unwritten: TextIO) -> None:
        self.client, self.writer, self.failed, self.unwritten = client, writer, failed, unwritten
        self.written = 0
        self.gates: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.served: set[str] = set()
        self.first = self.last = ""

    def add(self, split: str, record: Record, labels: LabelSet) -> Record:
        """The record with what was written for it."""
        for label, call in self.writer.calls(record, labels).items():
            record = self._added(split, record, labels, label, call)
        return record

    def _added(self, split: str, record: Record, labels: LabelSet, label: str, call: Call) -> Record:
        row = {"id": record.id, "split": split, **({"label": label} if label != record.label else {})}
        if call.id in self.failed:
            kind = self.failed[call.id].kind
            self.failures[kind] += 1
            self._not_written(row, failure=kind)
            return record
        answer = logged(self.client, call)
        reading = self.writer.read(record, labels, label, answer)
        self.served.add(answer.model)
        self.first = min(self.first or answer.created, answer.created)
        self.last = max(self.last, answer.created)
        notes = dict(reading.notes)
        if reading.rationale is None:
            self.gates[reading.reason] += 1
            self._not_written(row, gate=reading.reason)
        else:
            self.written += 1
            record = self.writer.placed(record, label, reading.rationale)
            written = {
                "model": answer.model or self.client.endpoint.model,
                "prompt": call.prompt_version,
                "created": answer.created,
                "key": answer.key,
            }
            own = label == record.label
            notes["provenance" if own else "contrast_provenance"] = written if own else {label: written}
        meta = dict(record.meta)
        for name, note in notes.items():
            meta.update(_with(meta, name, self.writer.source, note))
        return replace(record, meta=meta)

    def _not_written(self, row: Mapping[str, str], **reason: str) -> None:
        self.unwritten.write(json.dumps({**row, **reason}) + "\n")

    def provenance(self, splits: Sequence[str]) -> dict[str, Any]:
        """The entry for the source in `dataset.toml`."""
        return {
            "model": self.client.endpoint.model,
            "served_models": sorted(self.served),
            "host": host(self.client),
            "prompt": self.writer.prompt.full_version,
            **self.writer.settings(),
            "splits": list(splits),
            "first_answer": self.first,
            "last_answer": self.last,
            "written": self.written,
            "not_written": {name: self.gates[name] for name in (*GATES, *sorted(self.gates.keys() - GATES.keys()))},
            "failed_calls": dict(self.failures),
            **self.writer.found(),
        }


def _with(values: Mapping[str, Any], name: str, source: str, value: Any) -> dict[str, Any]:
    """Return `{name: {source: value}}`, merged with what `values` has under that name, and a mapping under its source.

    Raises:
        DataError: something else has that name.
    """
    existing = values.get(name, {})
    if not isinstance(existing, Mapping):
        raise DataError(
            f"{name!r} is already a column of the records' meta, so it cannot be written; rename the column"
        )
    before = existing.get(source)
    merged = {**before, **value} if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return {name: {**existing, source: merged}}
