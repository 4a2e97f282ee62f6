"""Cases as tasks of Label Studio: what the model said as predictions, what people answered as annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from reason2decide.data.records import LabelSet
from reason2decide.data.sources.label_studio import CASE, PATIENT, TEXT
from reason2decide.files import new_folder
from reason2decide.review import answers
from reason2decide.review.opening import labels_of
from reason2decide.review.queueing import prediction_of
from reason2decide.review.store import Store

DECISION, REASON = "decision", "rationale"  # names of the controls


def write_tasks(store: Store, out: Path, *, force: bool = False) -> int:
    """Write `tasks.json` and `config.xml` of a store; return the number of tasks.

    Raises:
        ConfigError: no server has opened the store yet.
        OutputError: `out` exists and `force` is false.
    """
    labels = labels_of(store)
    tasks = []
    for case in store.rows("SELECT id, key, text, patient FROM cases ORDER BY id"):
        prediction = prediction_of(store, case["id"])
        data = {TEXT: case["text"], CASE: case["key"]} | ({PATIENT: case["patient"]} if case["patient"] else {})
        task: dict[str, Any] = {"data": data, "predictions": [], "annotations": []}
        if prediction is not None:
            task["predictions"].append(
                {
                    "model_version": f"{prediction.model} {prediction.model_hash[:8]}",
                    "score": prediction.probabilities[prediction.label],
                    "result": result_of(prediction.label, prediction.rationale),
                }
            )
        for own in answers.of_case(store, case["id"]):
            if own["label"] is not None:
                task["annotations"].append(
                    {
                        "created_at": own["at"],
                        "was_cancelled": False,
                        "meta": {"reviewer": own["pseudonym"]},
                        # The model's words, left as they were, are not the reviewer's.
                        "result": result_of(own["label"], own["rationale"] if own["edited"] else None),
                    }
                )
        tasks.append(task)
    with new_folder(out, "tasks.json", force=force) as folder:
        (folder / "config.xml").write_text(config_of(labels), "utf-8")
        (folder / "tasks.json").write_text(json.dumps(tasks, ensure_ascii=False, indent=1), "utf-8")
    return len(tasks)


def result_of(label: str, reason: str | None) -> list[dict[str, Any]]:
    """A decision and its reason, as Label Studio keeps them."""
    found: list[dict[str, Any]] = [
        {"from_name": DECISION, "to_name": TEXT, "type": "choices", "value": {"choices": [label]}}
    ]
    if reason:
        found.append({"from_name": REASON, "to_name": TEXT, "type": "textarea", "value": {"text": [reason]}})
    return found


def config_of(labels: LabelSet) -> str:
    """The labelling interface of the task: the text, one decision, one reason."""
    choices = "\n".join(f"    <Choice value={quoteattr(label)}/>" for label in labels.values)
    return (
        f'<View>\n  <Text name="{TEXT}" value="${TEXT}"/>\n'
        f'  <Choices name="{DECISION}" toName="{TEXT}" choice="single-radio" required="true">\n'
        f"{choices}\n  </Choices>\n"
        f'  <TextArea name="{REASON}" toName="{TEXT}" rows="4" maxSubmissions="1" editable="true"/>\n</View>\n'
    )
