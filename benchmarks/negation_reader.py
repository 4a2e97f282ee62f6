"""How well denials, other people's findings and past ones are read, on notes whose truth is known.

    python benchmarks/negation_reader.py [--calls 2000]

Mentions: what `evaluation/assertions.py` says of each finding that a synthetic test note names, against the truth.

Contradictions: how often `cited_contradicted` objects to the gold rationales, which contradict nothing, and to the same
rationales after a sentence was added that asserts a finding which the patient denies or does not have now: in the words
of the note, or in the one wording that rationales use, which the note may not have.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from reason2decide.data.records import Record
from reason2decide.data.sources.synthetic_calls import RATIONALE_SOURCES, synthesize_calls
from reason2decide.data.sources.synthetic_calls.rules import load_rules
from reason2decide.data.words import sentences
from reason2decide.evaluation.assertions import assertion_at
from reason2decide.evaluation.metrics.contradiction import contradictions

KINDS = ("present", "denied", "elsewhere")


def mentions(record: Record) -> Iterator[tuple[str, str, str, str]]:
    """Id of the finding, its truth, what was read, and its words, for each mention in a note."""
    truth = dict.fromkeys(record.meta["present"], "present") | dict.fromkeys(record.meta["denied"], "denied")
    truth |= dict.fromkeys(record.meta["not_now_or_not_theirs"], "elsewhere")
    for finding in load_rules().findings.values():
        wordings = sorted((*finding.phrases.train, *finding.phrases.test), key=len, reverse=True)
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, wordings))})(?!\w)")
        for start, end in sentences(record.text):
            sentence = record.text[start:end]
            for mention in pattern.finditer(sentence):
                if finding.id in truth:
                    read = assertion_at(sentence, *mention.span())
                    yield finding.id, truth[finding.id], read, mention.group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        records = list(synthesize_calls(Path(folder) / "calls", train=1, validation=1, test=args.calls).split("test"))
    table = Counter((truth, read) for record in records for _, truth, read, _ in mentions(record))
    print("| truth | mentions | " + " | ".join(f"read as {kind}" for kind in KINDS) + " |\n|---|---|---|---|---|")
    for truth in KINDS:
        counts = [table[truth, kind] for kind in KINDS]
        print(f"| {truth} | {sum(counts)} | " + " | ".join(map(str, counts)) + " |")
    print("\n| rationales | number | said to contradict the note |\n|---|---|---|")
    for source in RATIONALE_SOURCES:
        gold = [(record.text, record.rationales[source]) for record in records if source in record.rationales]
        show(f"gold, {source}", gold)
    findings = load_rules().findings
    for what in ("the note's words", "the wording of rationales"):
        false = [
            (
                record.text,
                f"{record.rationales['llm']} The patient has {words if what[4] == 'n' else findings[id].text}.",
            )
            for record in records
            for id, truth, _, words in mentions(record)
            if truth != "present"
        ]
        show(f"with a false finding, in {what}", false)


def show(name: str, pairs: list[tuple[str, str]]) -> None:
    objected = sum(bool(contradictions(text, rationale)) for text, rationale in pairs)
    print(f"| {name} | {len(pairs)} | {100 * objected / len(pairs):.1f} % |")


if __name__ == "__main__":
    main()
