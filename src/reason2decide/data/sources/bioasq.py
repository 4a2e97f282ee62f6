"""Import records from BioASQ Task B files: the yes/no questions, their snippets and ideal answers.

The format is that of the task's guidelines (participants-area.bioasq.org): `{"questions": [{"id", "type", "body",
"exact_answer", "ideal_answer", "snippets": [{"text"}]}]}`. Downloading the files requires registration there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

from reason2decide.data.defaults import SHARES
from reason2decide.data.recipe import InputRecipe
from reason2decide.data.records import LabelSet, Record, record_from_json
from reason2decide.data.sources.splitting import split_records
from reason2decide.data.sources.writing import Imported, files_provenance, spooled, write_import
from reason2decide.errors import DataError
from reason2decide.syntax import Malformed, parse_json

LABELS = ("yes", "no")
YES_NO = "yesno"


def import_bioasq(
    paths: Sequence[Path],
    out: Path,
    *,
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
    name: str | None = None,
    force: bool = False,
) -> Imported:
    """Import the yes/no questions of BioASQ Task B files as a dataset; the notes say what was left out and why.

    The text is the question and each snippet once. The rationale, of source `human`, is the ideal answer, or the first
    of several: the others say the same in other words. If a question occurs again (the training files of each year
    contain those of earlier years), the first is kept.

    Raises:
        DataError: a file is not of this format, has no yes/no question with an answer, or has only one class.
        OutputError: `out` exists and `force` is false.
    """
    left_out: Counter[str] = Counter()
    dataset = write_import(
        out,
        starmap(spooled, _records(paths, left_out)),
        lambda members: split_records(members, shares, seed),
        name=name or out.name,
        task="answer a biomedical yes/no question from snippets of articles",
        labels=lambda _: LabelSet(LABELS),
        provenance={
            "importer": "bioasq",
            "files": files_provenance(paths),
            "seed": seed,
            "shares": list(shares.values()),
        },
        recipe=InputRecipe("bioasq"),
        force=force,
    )
    notes = [f"left out {count} questions: {reason}" for reason, count in left_out.most_common()]
    return Imported(dataset, tuple(notes))


def _records(paths: Sequence[Path], left_out: Counter[str]) -> Iterator[tuple[str, Record]]:
    seen: set[str] = set()
    for path in paths:
        for where, question in questions(path):
            kind = question.get("type")
            answer = _answer(question.get("exact_answer"))
            if kind != YES_NO:
                left_out[f"of type {kind!r}, not {YES_NO!r}"] += 1
            elif answer is None:
                left_out["without an exact answer 'yes' or 'no'"] += 1
            else:
                record = _record(where, question, answer)
                if record.id in seen:
                    left_out["their id occurs earlier"] += 1
                else:
                    seen.add(record.id)
                    yield where, record
    if not seen:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.most_common()) or "no questions found"
        raise DataError(f"no yes/no question with an answer in {', '.join(map(str, paths))}: {reasons}")


def questions(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The questions of a file, each with its place.

    Raises:
        DataError: the file is not of this format.
    """
    try:
        content = parse_json(path.read_bytes())
    except Malformed as error:
        raise DataError(f"{path} is {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("questions"), list):
        raise DataError(f"{path} is not a BioASQ Task B file; expected an object with a list of 'questions'")
    for index, question in enumerate(content["questions"], 1):
        where = f"{path}, question {index}"
        if not isinstance(question, dict):
            raise DataError(f"{where}: expected a JSON object, got {type(question).__name__}")
        yield where, question


def question_text(where: str, question: Mapping[str, Any]) -> str:
    """The text of a question: its body, and each snippet once.

    Raises:
        DataError: it is not a yes/no question, has no body, or its snippets have another form.
    """
    if question.get("type", YES_NO) != YES_NO:
        raise DataError(f"{where}: of type {question['type']!r}, not {YES_NO!r}")
    if not isinstance(question.get("body"), str) or not question["body"].strip():
        raise DataError(f"{where}: the question's 'body' is empty; fill it in or leave the question out")
    try:
        # Some files have snippets without a text.
        snippets = [(snippet["text"] or "").strip() for snippet in question.get("snippets") or ()]
    except (TypeError, KeyError, AttributeError):
        raise DataError(f"{where}: expected 'snippets' to be a list of objects with a 'text'") from None
    lines = [f"question: {question['body'].strip()}", *(f"snippet: {snippet}" for snippet in snippets if snippet)]
    return "\n".join(dict.fromkeys(lines))


def _record(where: str, question: Mapping[str, Any], answer: str) -> Record:
    ideal = question.get("ideal_answer") or ""
    rationale = next(iter(ideal), "") if isinstance(ideal, list) else ideal
    value = {
        "id": question.get("id"),
        "text": question_text(where, question),
        "label": answer,
        "rationales": {"human": rationale.strip() if isinstance(rationale, str) else rationale},
    }
    return record_from_json(value, where)


def _answer(exact: object) -> str | None:
    """Read `yes` or `no` from "yes", "Yes." or ["yes"], as in the task's files of different years."""
    if isinstance(exact, list) and len(exact) == 1:
        exact = exact[0]
    answer = exact.strip(" .").lower() if isinstance(exact, str) else None
    return answer if answer in LABELS else None
