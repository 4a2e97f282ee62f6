"""Import records from PubMedQA files: labelled, artificial and unlabelled.

As its authors publish it (github.com/pubmedqa/pubmedqa), a file is one JSON object of PMID -> {"QUESTION", "CONTEXTS",
"LABELS", "LONG_ANSWER", "final_decision"}; the unlabelled file has no `final_decision`. As the hub has it, a file has a
row per question, as JSON lines or Parquet: {"pubid", "question", "context": {"contexts", "labels"}, "long_answer",
"final_decision"}.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any, TextIO

from reason2decide.data.defaults import SHARES
from reason2decide.data.recipe import InputRecipe
from reason2decide.data.records import LabelSet, Record, record_from_json
from reason2decide.data.sources.rows import open_table
from reason2decide.data.sources.splitting import Member, split_records
from reason2decide.data.sources.writing import Imported, files_provenance, require_file, spooled, write_import
from reason2decide.errors import DataError, UserError
from reason2decide.files import new_file, require_absent
from reason2decide.syntax import Malformed, parse_json

LABELS = ("yes", "no", "maybe")
# Shares of the questions outside test. The official cross-validation also trains on 450 and develops on 50.
OFFICIAL_SHARES = {"train": 0.9, "validation": 0.1}
CHUNK = 1 << 20


def import_pubmedqa(
    paths: Sequence[Path],
    out: Path | None,
    *,
    test_ids: Path | None = None,
    unlabelled_out: Path | None = None,
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
    name: str | None = None,
    force: bool = False,
) -> Imported:
    """Import PubMedQA questions as a dataset, or those without a decision as plain records.

    The text is the question and its contexts under their section names; `LONG_ANSWER`, the authors' conclusion, is the
    rationale of source `human`; the group is the PMID. With `test_ids` (the official `test_ground_truth.json`) those
    questions are the test split and `shares` is not used. Questions without `final_decision` have no label: they go
    to `unlabelled_out`, one record per line, or are left out. With `out` None only these are written.

    Raises:
        DataError: a file is not of this format or has no labelled question, or a test id is missing.
        UserError: neither `out` nor `unlabelled_out`.
        OutputError: an output exists and `force` is false.
    """
    if out is None and unlabelled_out is None:
        raise UserError("nothing to write; give --out for a dataset or --unlabelled-out for records without a label")
    if out is not None:
        require_absent(out, force=force)
    wanted = _read_test_ids(test_ids) if test_ids else None
    unlabelled = 0

    def labelled(stream: TextIO | None) -> Iterator[tuple[str, Record]]:
        nonlocal unlabelled
        count = 0
        for where, record in _records(paths):
            if record.label is None:
                unlabelled += 1
                if stream is not None:
                    stream.write(json.dumps(record.to_json(), ensure_ascii=False) + "\n")
            else:
                count += 1
                yield where, record
        if not count and out is not None:
            raise DataError(
                f"none of the {unlabelled} questions has a final_decision, so they have no label and cannot form a "
                "dataset; write them as plain records with --unlabelled-out FILE.jsonl instead of --out"
            )

    def assign(members: Sequence[Member]) -> Mapping[str, str]:
        if wanted is None:
            return split_records(members, shares, seed)
        missing = sorted(wanted - {item.id for item in members})
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(wanted)} test ids are not among the labelled questions, such as "
                f"{missing[0]!r}; import the file they belong to (ori_pqal.json)"
            )
        rest = split_records([item for item in members if item.id not in wanted], OFFICIAL_SHARES, seed)
        return rest | dict.fromkeys(wanted, "test")

    with contextlib.ExitStack() as stack:
        stream: TextIO | None = None
        if unlabelled_out is not None:
            partial = stack.enter_context(new_file(unlabelled_out, force=force))
            stream = stack.enter_context(partial.open("w", encoding="utf-8"))
        if out is None:
            left_out = sum(1 for _ in labelled(stream))
            if not unlabelled:
                raise DataError("every question has a final_decision; import the questions as a dataset with --out")
            note = f"wrote {unlabelled} records without a label to {unlabelled_out}"
            rest = (f"left out {left_out} labelled questions; they need --out",) if left_out else ()
            return Imported(None, (note, *rest))
        dataset = write_import(
            out,
            starmap(spooled, labelled(stream)),
            assign,
            name=name or out.name,
            task="answer a biomedical research question from an abstract without its conclusion",
            labels=lambda found: LabelSet(tuple(label for label in LABELS if label in found)),
            provenance={
                "importer": "pubmedqa",
                "files": files_provenance([*paths, *([test_ids] if test_ids else [])]),
                "seed": seed,
                "shares": list((OFFICIAL_SHARES if test_ids else shares).values()),
            },
            recipe=InputRecipe("pubmedqa"),
            force=force,
        )
    if not unlabelled:
        return Imported(dataset)
    fate = f"went to {unlabelled_out}" if unlabelled_out else "were left out (--unlabelled-out keeps them)"
    return Imported(dataset, (f"{unlabelled} questions without a final_decision {fate}",))


def _read_test_ids(path: Path) -> set[str]:
    """Read the keys of `test_ground_truth.json` (PMID -> answer), or a plain JSON list of PMIDs."""
    require_file(path)
    try:
        content = parse_json(path.read_bytes())
    except Malformed as error:
        raise DataError(f"{path} is {error}") from None
    if not isinstance(content, (dict, list)) or not content:
        raise DataError(f"{path} has no test ids; expected an object of PMID -> answer or a list of PMIDs")
    return {str(pmid) for pmid in content}


def _records(paths: Sequence[Path]) -> Iterator[tuple[str, Record]]:
    for path in paths:
        for pmid, item in items(path):
            where = f"{path}, PMID {pmid}"
            yield where, _record(where, pmid, item)


def items(path: Path) -> Iterator[tuple[str, Any]]:
    """The questions of a file in the authors' format, each with its PMID.

    Raises:
        DataError: the file is not of one of the two formats.
    """
    require_file(path)
    return _hub_items(path) if path.suffix.lower() in (".jsonl", ".parquet") else _items(path)


def cases(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions of a file as rows with an `id`, each with its place, whether they have a decision or not."""
    for pmid, item in items(path):
        yield f"{path}, PMID {pmid}", {**item, "id": pmid} if isinstance(item, dict) else {"id": pmid}


def item_text(where: str, item: object) -> str:
    """The text of a question: itself, and its contexts under their section names.

    Raises:
        DataError: it has another form.
    """
    if not isinstance(item, dict) or not isinstance(item.get("QUESTION"), str):
        raise DataError(f"{where}: expected an object with a QUESTION and CONTEXTS, as in PubMedQA's ori_pqal.json")
    contexts, sections = item.get("CONTEXTS") or [], item.get("LABELS") or []
    if not (_are_strings(contexts) and _are_strings(sections)):
        raise DataError(f"{where}: expected CONTEXTS and LABELS to be lists of strings")
    if len(sections) != len(contexts):
        sections = ["context"] * len(contexts)
    lines = [f"{section}: {context}" for section, context in zip(sections, contexts, strict=True)]
    return "\n".join([f"question: {item['QUESTION'].strip()}", *lines])


def _record(where: str, pmid: str, item: Any) -> Record:
    text = item_text(where, item)
    decision, answer = item.get("final_decision"), item.get("LONG_ANSWER") or ""
    if decision is not None and decision not in LABELS:
        raise DataError(f"{where}: the final_decision is {decision!r}; expected one of {', '.join(LABELS)}")
    if not isinstance(answer, str):
        raise DataError(f"{where}: expected LONG_ANSWER to be a string")
    value = {
        "id": pmid,
        "text": text,
        "label": decision,
        "rationales": {"human": answer} if answer else {},
        "group": pmid,
    }
    return record_from_json(value, where)


def _hub_items(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file from the hub, each as its id and an item in the authors' format."""
    columns = ("pubid", "question", "context", "long_answer", "final_decision")
    for place, row in open_table(path).rows(columns):
        context = row.get("context")
        if not isinstance(context, dict) or row.get("pubid") is None:
            raise DataError(f"{place}: expected a pubid, a question and a context with contexts, as the hub has them")
        yield (
            str(row["pubid"]),
            {
                "QUESTION": row.get("question"),
                "CONTEXTS": context.get("contexts"),
                "LABELS": context.get("labels"),
                "LONG_ANSWER": row.get("long_answer"),
                "final_decision": row.get("final_decision"),
            },
        )


def _are_strings(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the members of a JSON object one at a time: the artificial file alone is half a gigabyte.

    Raises:
        DataError: not UTF-8, not valid JSON (with its line), or not an object.
    """
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as stream:
        text = _Ahead(path, stream)
        if text.next_mark() != "{":
            raise DataError(f"{path} is not a PubMedQA file; expected one JSON object of PMID -> question")
        mark = text.next_mark() if text.peek() == "}" else ","
        while mark == ",":
            key = text.decode(decoder)
            if not isinstance(key, str) or text.next_mark() != ":":
                raise text.invalid("expected a PMID in quotes and ':'")
            yield key, text.decode(decoder)
            mark = text.next_mark()
        if mark != "}":
            raise text.invalid("expected ',' or '}'")
        if text.peek():
            raise text.invalid("more text after the object")


class _Ahead:
    """A JSON text with only the part not yet decoded in memory."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self.path, self.stream = path, stream
        self.text, self.at, self.line = "", 0, 1

    def peek(self) -> str:
        """Return the next character that is not white space, or "" at the end."""
        while True:
            while self.at < len(self.text):
                if not self.text[self.at].isspace():
                    return self.text[self.at]
                self.at += 1
            if not self._read(CHUNK):
                return ""

    def next_mark(self) -> str:
        """Consume the character that `peek` shows."""
        mark = self.peek()
        self.at += len(mark)
        return mark

    def decode(self, decoder: json.JSONDecoder) -> Any:
        """Decode the next JSON value, reading more while it may be incomplete."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, self.at = decoder.raw_decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                if not self._read(size):
                    raise self.invalid(error.msg, error.pos) from None
                size *= 2  # so that a long value is not decoded again for every chunk

    def invalid(self, message: str, at: int | None = None) -> DataError:
        line = self.line + self.text.count("\n", 0, self.at if at is None else at)
        return DataError(f"{self.path}, line {line}: not valid JSON ({message})")

    def _read(self, size: int) -> bool:
        try:
            more = self.stream.read(size)
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is not UTF-8 ({error.reason}); convert it first") from None
        self.line += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)
