"""Synthetic calls to a nurse line: telephone triage with labels, three rationales and the facts behind them.

SYNTHETIC, not clinical advice: the rules in `triage_rules.toml` are made up to test software. They exist because no
triage data with human rationales is public. For each call, `facts.draw_call` draws its facts, `facts.decide` applies
the rules, and `wording` writes the note and the rationales.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random

from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.defaults import CALL_COUNTS, LABEL_NOISE
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.sources.synthetic_calls.facts import RuledLevel, decide, draw_call
from reason2decide.data.sources.synthetic_calls.rules import load_rules, rules_text
from reason2decide.data.sources.synthetic_calls.wording import (
    NoteWriter,
    nurse_rationales,
    rationale_for,
)
from reason2decide.errors import DataError
from reason2decide.files import require_absent

SYNTHETIC_NOTICE = (
    "Synthetic nurse-line calls: patients, notes, rules and rationales are made up to test software. "
    "They describe nobody, and they are not clinical advice."
)
RATIONALE_SOURCES = ("llm", "nurse", "nurse_refined")


def synthesize_calls(
    out: Path,
    *,
    train: int = CALL_COUNTS["train"],
    validation: int = CALL_COUNTS["validation"],
    test: int = CALL_COUNTS["test"],
    seed: int = 0,
    label_noise: float = LABEL_NOISE,
    force: bool = False,
) -> DatasetFolder:
    """Write a dataset of synthetic calls to the folder `out`; the same arguments give the same bytes.

    Each call has a rationale of source `llm` for every other label too, which weighs the same facts otherwise.

    `label_noise` is the share of records, in every split, with an adjacent label; their rationales argue for the label
    given, and `meta["true_label"]` keeps the label by the rules. Sizes, rates and rules are ours.

    Raises:
        DataError: a count below 1, or a label noise outside 0 to 0.5.
        OutputError: `out` exists and `force` is false.
    """
    counts = {"train": train, "validation": validation, "test": test}
    for split, count in counts.items():
        if count < 1:
            raise DataError(f"{count} records were requested for the split {split!r}; a split needs at least 1")
    if not 0 <= label_noise < 0.5:
        raise DataError(f"the label noise is {label_noise}; expected a share from 0 to below 0.5")
    require_absent(out, force=force)
    rules = load_rules()
    info = DatasetInfo(
        name="synthetic-calls",
        task="triage",
        labels=LabelSet(rules.labels, ordinal=True, urgent="last"),
        rationale_sources=RATIONALE_SOURCES,
        provenance={
            "source": "the synthetic calls of reason2decide",
            "notice": SYNTHETIC_NOTICE,
            "seed": seed,
            "label_noise": float(label_noise),
            "rules_sha256": hashlib.sha256(rules_text().encode()).hexdigest(),
        },
    )
    # The smaller splits are drawn first: only train avoids notes of the others, so they do not change with its size.
    texts: set[str] = set()
    drawn = {split: list(_records(split, counts[split], seed, label_noise, texts)) for split in ("test", "validation")}
    splits = {"train": _records("train", train, seed, label_noise, texts), **drawn}
    return write_dataset(out, info, {split: splits[split] for split in counts}, force=force)


def _records(split: str, count: int, seed: int, label_noise: float, texts: set[str]) -> Iterator[Record]:
    """Yield the records of a split; a note whose text is in `texts` is drawn again, and each new text is added."""
    for index in range(count):
        attempt = 0
        while (record := _record(split, index, attempt, seed, label_noise)).text in texts:
            attempt += 1
        texts.add(record.text)
        yield record


def _record(split: str, index: int, attempt: int, seed: int, label_noise: float) -> Record:
    rules = load_rules()
    # Each record has its own random streams: it does not depend on the number of records or on the label noise.
    stream = f"{seed}/{split}/{index}/{attempt}"
    rng = Random(stream)
    call = draw_call(rng, rules, held_out=split == "test")
    decision = decide(call, rules)
    writer = NoteWriter(rng, rules, unseen=split == "test")
    text = writer.write(call)
    label = _noisy(Random(f"{stream}/noise"), decision, label_noise, len(rules.labels))
    argued = {name: rationale_for(call, decision, level, rules) for level, name in enumerate(rules.labels)}
    rationales = {"llm": argued.pop(rules.labels[label])}
    written = nurse_rationales(rng, call, decision, label, rules)
    if written is not None:
        rationales["nurse"], rationales["nurse_refined"] = written
    complaint, absent = rules.complaints[call.complaint], (*call.absent, *call.absent_risks)
    return Record(
        id=f"{split}-{index:06d}",
        text=text,
        label=rules.labels[label],
        rationales=rationales,
        meta={
            "complaint": call.complaint,
            "group": complaint.group,
            "age": f"{call.age} {call.age_unit}",
            "age_years": call.age if call.age_unit == "yo" else 0,
            "sex": call.sex,
            "pregnant": "pregnant" in call.risks,
            "severity": call.severity,
            "onset": call.onset,
            "recent": rules.onset[call.onset].recent,
            "risks": list(call.risks),
            "present": list(call.present),
            "denied": [mention.id for mention in absent if mention.how == "denied"],
            "not_now_or_not_theirs": [mention.id for mention in absent if mention.how != "denied"],
            "facts": [asdict(fact) for fact in decision.facts],
            "true_label": rules.labels[decision.level],
            "noisy": label != decision.level,
            "unseen_wordings": writer.unseen_wordings,
            "unseen_combination": any(risk in complaint.held_out for risk in call.risks),
        },
        contrasts={"llm": argued},
    )


def _noisy(rng: Random, decision: RuledLevel, label_noise: float, labels: int) -> int:
    """The decision's level, or with probability `label_noise` an adjacent one."""
    if rng.random() >= label_noise:
        return decision.level
    return rng.choice([level for level in (decision.level - 1, decision.level + 1) if 0 <= level < labels])
