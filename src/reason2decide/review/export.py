"""From answers to a dataset: what people decided and wrote becomes training data of known provenance.

A settled case becomes a record. Its label is the final one; `votes` has the share of reviewers for each label. A
reason that somebody wrote or corrected for it is a rationale of source `nurse`. The model's words have a source
of their own, `model`, so that nobody trains a model on them unawares: a rationale where they were accepted as they
were, a contrast where the model decided otherwise, since they argue for a label that is not the final one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import Record
from reason2decide.data.sources.splitting import split_records
from reason2decide.data.sources.writing import Spooled, spooled, write_import
from reason2decide.errors import DataError
from reason2decide.review.answers import SETTLED, final_label, votes
from reason2decide.review.opening import labels_of, recipe_of
from reason2decide.review.store import Row, Store

NURSE, MODEL = "nurse", "model"  # sources of rationales
KEPT = ("kind", "action", "label", "first_label", "first_at", "sampled", "share", "opened", "at", "reason", "comment")


@dataclass(frozen=True)
class Exported:
    """A dataset of feedback, and how much of the store is in it."""

    dataset: DatasetFolder
    rationales: Mapping[str, int]
    unsettled: int


def export_feedback(
    store: Store, out: Path, *, shares: Mapping[str, float], seed: int, name: str | None = None, force: bool = False
) -> Exported:
    """Write the settled cases of a store as a dataset.

    Raises:
        ConfigError: no server has opened the store yet.
        DataError: no case is settled, or all have one label.
        OutputError: `out` exists and `force` is false.
    """
    labels, sources = labels_of(store), Counter[str]()
    settled, left = (
        store.rows(f"SELECT count(*) AS n FROM cases WHERE state {which} {SETTLED}")[0]["n"]
        for which in ("IN", "NOT IN")
    )
    if not settled:
        raise DataError(
            f"{store.path} has no settled case yet ({left} are not): a case is settled when as many reviewers as it "
            "needs agree, or an adjudicator has decided"
        )

    # A source that has contrasts only cannot be trained on; what reviewers saw stands in `meta` all the same.
    with_gold = {source for own in settled_cases(store) for source in record_of(*own).rationales}

    def records() -> Iterator[Spooled]:
        for case, answers in settled_cases(store):
            record = record_of(case, answers)
            kept = {source: texts for source, texts in record.contrasts.items() if source in with_gold}
            record = replace(record, contrasts=kept)
            sources.update(list(record.rationales))
            sources.update(f"contrast of {source}" for source in record.contrasts)
            yield spooled(f"case {case['key']}", record)

    dataset = write_import(
        out,
        records(),
        lambda members: split_records(members, shares, seed),
        name=name or out.name,
        task="decide as the reviewers did, with their reasons",
        labels=lambda found: labels,
        provenance={"source": "feedback", "store": store.path.name},
        recipe=recipe_of(store),
        force=force,
    )
    return Exported(dataset, sources, left)


def settled_cases(store: Store) -> Iterator[tuple[Row, list[dict[str, Any]]]]:
    """The settled cases with their answers that stand, and what each reviewer saw of the model."""
    rows = store.rows(
        "SELECT a.*, r.pseudonym, p.model, p.model_hash, p.label AS model_label, p.rationale AS original, "
        "p.probabilities FROM answers a JOIN reviewers r ON r.id = a.reviewer LEFT JOIN predictions p "
        f"ON p.id = a.prediction JOIN cases c ON c.id = a.case_id AND c.state IN {SETTLED} "
        "WHERE a.undone IS NULL AND a.action != 'skip' ORDER BY a.id"
    )
    answers: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        answers[row["case_id"]].append(row)
    for case in store.rows(f"SELECT * FROM cases WHERE state IN {SETTLED} ORDER BY id"):
        yield case, answers[case["id"]]


def record_of(case: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Record:
    """A settled case as a record; see the module. The latest reason of a kind counts, the adjudicator's last of all."""
    label = final_label(answers)
    rationales: dict[str, str] = {}
    contrasts: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for own in sorted(answers, key=lambda own: own["kind"] == "review", reverse=True):
        original = (own["original"] or "").strip()
        if own["edited"] and own["rationale"] and own["label"] is not None:
            if own["label"] == label:
                rationales[NURSE] = own["rationale"]
            else:
                contrasts[NURSE][own["label"]] = own["rationale"]
        if not original:
            continue
        if own["model_label"] != label:
            contrasts[MODEL][own["model_label"]] = original
        elif own["label"] == label and not own["edited"]:
            rationales[MODEL] = original
    reviews = [
        {
            "reviewer": own["pseudonym"],
            **{key: own[key] for key in KEPT if own[key] not in (None, "")},
            "blind": bool(own["blind"]),
            **({"edited": own["rationale"]} if own["edited"] else {}),
            **(
                {
                    "model": own["model"],
                    "model_hash": own["model_hash"],
                    "model_label": own["model_label"],
                    "original": original,
                }
                if (original := own["original"] or "") or own["model_label"]
                else {}
            ),
        }
        for own in answers
    ]
    meta = {"queue": case["source"], "state": case["state"], "votes": votes(answers), "reviews": reviews}
    return Record(
        case["key"], case["text"], label, rationales, group=case["patient"], meta=meta, contrasts=dict(contrasts)
    )
