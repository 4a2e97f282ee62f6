"""Import a Label Studio export: one decision (Choices) and one reason (TextArea) for each text.

Several people may have annotated a task. The label that most of them chose is the record's; where two are level, the
task is left out and counted. The reason is the latest one for that label, other labels' reasons are contrasts.
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

SOURCE = "nurse"
TEXT, CASE, PATIENT = "text", "case", "patient"  # keys of a task's data; only the text must be there


def import_label_studio(
    path: Path,
    out: Path,
    *,
    labels: LabelSet | None = None,
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
    name: str | None = None,
    force: bool = False,
) -> Imported:
    """Import the annotated tasks of a JSON export (not JSON-MIN) as a dataset folder.

    Raises:
        DataError: not such an export, no task with a decision, or a label outside `labels`.
        OutputError: `out` exists and `force` is false.
    """
    provenance = {"source": "label-studio", "files": files_provenance([path])}
    tasks, left_out = _tasks(path), Counter[str]()
    dataset = write_import(
        out,
        starmap(spooled, _records(path, tasks, labels, left_out)),
        lambda members: split_records(members, shares, seed),
        name=name or out.name,
        task="decide as the annotators did, with their reasons",
        labels=lambda found: labels or LabelSet(tuple(sorted(found))),
        provenance=provenance,
        recipe=InputRecipe(text=(TEXT,)),
        force=force,
    )
    return Imported(dataset, tuple(f"{count} tasks left out: {why}" for why, count in left_out.items()))


def _tasks(path: Path) -> list[Any]:
    try:
        tasks = parse_json(path.read_bytes())
    except Malformed as error:
        raise DataError(f"{path} is {error}; expected a JSON export of Label Studio") from None
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "annotations" in task for task in tasks):
        raise DataError(
            f"{path}: expected a list of tasks with their annotations; export the project as JSON (not JSON-MIN)"
        )
    return tasks


def _records(
    path: Path, tasks: Sequence[Mapping[str, Any]], labels: LabelSet | None, left_out: Counter[str]
) -> Iterator[tuple[str, Record]]:
    for number, task in enumerate(tasks, 1):
        where = f"{path}, task {task.get('id', number)}"
        data = task.get("data")
        if not isinstance(data, dict) or not isinstance(data.get(TEXT), str):
            raise DataError(f"{where}: its data have no {TEXT!r}; import tasks whose text has this key")
        given = [own for annotation in task["annotations"] if (own := decision_of(annotation)) is not None]
        chosen = Counter(label for label, _ in given).most_common(2)
        if not chosen:
            left_out["nobody decided"] += 1
            continue
        if len(chosen) > 1 and chosen[0][1] == chosen[1][1]:
            left_out["people decided differently, as many each way"] += 1
            continue
        label = chosen[0][0]
        unknown = [own for own, _ in given if labels is not None and own not in labels.values]
        if unknown:
            raise DataError(f"{where}: {unknown[0]!r} is not one of the labels given")
        reasons = {own: reason for own, reason in given if reason}
        value: dict[str, Any] = {
            "id": str(data.get(CASE) or task.get("id", number)),
            "text": data[TEXT],
            "label": label,
        }
        if isinstance(data.get(PATIENT), str) and data[PATIENT].strip():
            value["group"] = data[PATIENT].strip()
        if label in reasons:
            value["rationales"] = {SOURCE: reasons.pop(label)}
        if reasons:
            value["contrasts"] = {SOURCE: reasons}
        total = len(given)
        value["meta"] = {"votes": {own: n / total for own, n in Counter(own for own, _ in given).items()}}
        yield where, record_from_json(value, where)


def decision_of(annotation: Mapping[str, Any]) -> tuple[str, str] | None:
    """The label that an annotation chose, and its reason, empty if there is none; None if it chose none.

    >>> choice = {"type": "choices", "value": {"choices": ["home care"]}}
    >>> decision_of({"result": [choice, {"type": "textarea", "value": {"text": ["No red flags."]}}]})
    ('home care', 'No red flags.')
    """
    if annotation.get("was_cancelled"):
        return None
    label, reason = None, ""
    for part in annotation.get("result") or ():
        value = part.get("value") or {}
        if part.get("type") == "choices" and value.get("choices"):
            label = str(value["choices"][0])
        elif part.get("type") == "textarea":
            text = value.get("text") or ""
            reason = "\n".join(text) if isinstance(text, list) else str(text)
    return None if label is None else (label, reason.strip())
