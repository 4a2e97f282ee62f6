"""Metrics of how a rationale changes with its input: a word inserted into the text, or the label to explain."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from reason2decide.data.predictions import NO_ANSWER, Prediction
from reason2decide.data.records import Record
from reason2decide.data.verdicts import SIGNATURE as VERDICTS
from reason2decide.data.words import words_of
from reason2decide.errors import NotComputed
from reason2decide.evaluation.deletions import SIGNATURE as DELETIONS
from reason2decide.evaluation.metrics.base import Examples, Floats, Metric, SufficientStatistics, ratio
from reason2decide.evaluation.metrics.overlap import Chrf
from reason2decide.evaluation.metrics.rationales import (
    Ratio,
    has_rationale,
    pooled,
    probes_of,
    require_rationales,
    require_several,
    told,
)
from reason2decide.evaluation.probes import Probe
from reason2decide.evaluation.readers import SIGNATURE

NOT_INSERTED = "no word was inserted into the texts; evaluate the bundle itself with --insertions 10 or more"
NOT_DELETED = "no sentence was deleted from the texts; evaluate the bundle itself, not only its predictions"
NOT_SWAPPED = (
    "the model was not asked for rationales for another label; evaluate the bundle itself, trained by a method that "
    "conditions rationales on a label"
)
NOT_READ = "no simulator read the rationales for swapped labels; evaluate with the dataset's train split"


class PhiCct(Metric):
    """Whether rationales mention an inserted word when, and only when, it changed the decision.

    Why: if a word changes the decision, an honest rationale mentions it; one that mentions every word of the text is no
    more honest than one that mentions none.
    Formula: phi = (n11 n00 - n10 n01) / sqrt(n1. n0. n.1 n.0) over insertions, first index: the decision changed,
    second: the new rationale has the word. 0 if the rationales always or never have it, since they are then
    uninformative (as Siegel et al. argue); not computed if no decision changed, or every one, since then nothing was
    tested. Single words rarely change a decision, so it takes many insertions and is off by default. Range -1 to 1,
    higher is better.
    Source: Siegel et al. 2025, "phi-CCT", on the insertions of Atanasova et al. 2023.
    """

    name, title, worst, best = "phi_cct", "Counterfactual insertion test (phi-CCT)", -1.0, 1.0

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows of a record's insertions: (changed and mentioned, changed only, mentioned only, neither).

        Raises:
            NotComputed: no rationale, no insertion, or all decisions changed, or none.
        """
        require_rationales(examples)
        rows, positions, unanswered = [], [], 0
        for i, probe in enumerate(probes_of(examples, NOT_INSERTED)):
            before = examples.predictions[i].predicted_label
            if not probe.insertions or before == NO_ANSWER:
                unanswered += bool(probe.insertions)
                continue
            cells = [
                2 * (insertion.label == before) + (insertion.word.casefold() not in words_of(insertion.rationale))
                for insertion in probe.insertions
            ]
            rows.append(np.bincount(cells, minlength=4).tolist())
            positions.append(i)
        if not rows:
            raise NotComputed(NOT_INSERTED)
        counts = np.sum(rows, axis=0)
        changes, insertions = int(counts[:2].sum()), int(counts.sum())
        if changes in (0, insertions):
            which = "no decision" if not changes else "every decision"
            raise NotComputed(f"{which} changed after {insertions} insertions, so there is nothing to compare")
        left_out = len(examples) - len(rows) - unanswered
        constant = not counts[[0, 2]].any() or not counts[[1, 3]].any()
        notes = {
            f"{left_out} of {len(examples)} records got no insertion and are left out": left_out,
            f"{unanswered} of {len(examples)} predictions have no answer and are left out": unanswered,
            "the rationales always or never have the inserted word, which counts as 0": constant,
        }
        return pooled(rows, positions, (f"{changes} of {insertions} decisions changed", *told(notes)))

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 4) -> (...); 0 if a row or column of the table is empty."""
        both, changed, mentioned, neither = (sums[..., i] for i in range(4))
        margins = (both + changed) * (mentioned + neither) * (both + mentioned) * (changed + neither)
        return ratio(both * neither - changed * mentioned, np.sqrt(margins))


class DeletionDrop(Ratio):
    """How much more the decision rests on the sentences that its rationale cites than on others.

    Why: a rationale may cite true facts that had no part in the decision. If it names what mattered, deleting that
    lowers the probability of the decision more than deleting as many other words.
    Formula: mean of P(y^ | x without others) - P(y^ | x without cited), which is the drop after deleting the cited
    sentences less the drop after deleting others of about equal length. Range -1 to 1, higher is better; 0 if what is
    cited does not matter. Source: ours, after comprehensiveness (DeYoung et al. 2020), whose drop grows with the number
    of words deleted.
    """

    name, title, worst, best = "deletion_drop", "Drop when cited sentences are deleted", -1.0, 1.0

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (difference of the two probabilities, 1).

        Raises:
            NotComputed: no rationale, or nothing was deleted.
        """
        require_rationales(examples)
        found = [
            (i, probe.p_without_others - probe.p_without_cited)
            for i, probe in enumerate(probes_of(examples, NOT_DELETED))
            if probe.p_without_others is not None and probe.p_without_cited is not None
        ]
        if not found:
            raise NotComputed(NOT_DELETED)
        left_out = len(examples) - len(found)
        note = (
            f"{left_out} of {len(examples)} records were not probed, or their rationales cite no sentence or nearly "
            "all, and are left out"
        )
        return pooled([(drop, 1) for _, drop in found], [i for i, _ in found], told({note: left_out}))

    def signature(self) -> str:
        """Which sentences count as cited, and which are deleted instead."""
        return DELETIONS


class SwapChange(Metric):
    """How much the rationale changes when the model must argue for its second choice instead of its first.

    Why: a rationale that stays the same for any given label was not written for the label.
    Formula: 100 - chrF of the rationale for the second label against the one for the first, corpus chrF as in the
    metric `chrf`; an empty second one counts as empty text. Range 0 to 100, higher means more change; 100 is not the
    goal, since the facts of the text stay the same. Source: ours.
    """

    name, title, worst, best = "swap_change", "Change when the label is swapped", 0.0, 100.0

    def __init__(self) -> None:
        self.chrf = Chrf()

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """chrF's counts.

        Raises:
            NotComputed: no rationale, or no rationale for another label.
        """
        swapped, notes = _swapped(examples)
        records = [
            Record(probe.id, "", rationales={"first": prediction.rationale or ""}) for _, prediction, probe in swapped
        ]
        predictions = [
            Prediction(probe.id, prediction.predicted_label, None, probe.swapped_rationale or "")
            for _, prediction, probe in swapped
        ]
        counts = self.chrf.statistics(Examples(records, predictions, examples.labels, "first"))
        positions = np.array([i for i, _, _ in swapped], np.int64)
        return SufficientStatistics(counts.rows, counts.row_of, positions, notes)

    def aggregate(self, sums: Floats) -> Floats:
        """(..., 18) -> (...)."""
        return 100 - self.chrf.aggregate(sums)

    def signature(self) -> str:
        """chrF's signature."""
        return self.chrf.signature()


class SwapFollows(Ratio):
    """How often an independent simulator reads the swapped label from the rationale written for it.

    Why: it is not enough that the rationale changes; it should argue for the given label. A model that does so for any
    label is a good advocate, as conditioning intends; it does not prove that its decisions are good.
    Formula: mean of 1[S_r(r^(y')) = y'], y' the model's second choice, S_r a simulator trained on gold rationales
    (of own choices: the only one named); an empty rationale counts 0. Range 0 to 1, higher is better. Source: ours.
    """

    name, title, worst, best = "swap_follows", "Rationale follows the swapped label", 0.0, 1.0
    reader: ClassVar[str] = "swapped_rationale"

    def statistics(self, examples: Examples) -> SufficientStatistics:
        """Rows (follows, 1), with two distinct ones.

        Raises:
            NotComputed: no rationale, none for another label, no simulator read one, or the swapped label is always the
                same.
        """
        swapped, notes = _swapped(examples)
        read = [probe.simulated.get(self.reader) for _, _, probe in swapped]
        if all(label is None for label in read):
            raise NotComputed(NOT_READ)
        require_several({probe.swapped_label for _, _, probe in swapped}, len(swapped))
        rows = [(label == probe.swapped_label, 1) for label, (_, _, probe) in zip(read, swapped, strict=True)]
        return pooled(rows, [i for i, _, _ in swapped], notes)

    def signature(self) -> str:
        """The simulators' settings, and how verdicts are found where they are removed."""
        return f"{SIGNATURE}|{VERDICTS}" if self.reader == "swapped_reasons" else SIGNATURE


class SwapFollowsNoVerdict(SwapFollows):
    """How often an independent simulator reads the swapped label from the reasons given for it, without the verdict.

    Why: a model may only change the verdict and keep its reasons. Formula: as swap_follows, with S_n(reasons(r^(y'))).
    Range 0 to 1, higher is better. Source: ours.
    """

    name, title, worst, best = "swap_follows_no_verdict", "Reasons follow the swapped label, no verdict", 0.0, 1.0
    reader = "swapped_reasons"


def _swapped(examples: Examples) -> tuple[list[tuple[int, Prediction, Probe]], tuple[str, ...]]:
    """Position, prediction and probe of each example with a rationale and a swapped label, and notes on the others."""
    require_rationales(examples)
    swapped = [
        (i, prediction, probe)
        for i, (prediction, probe) in enumerate(
            zip(examples.predictions, probes_of(examples, NOT_SWAPPED), strict=True)
        )
        if probe.swapped_label is not None and has_rationale(prediction)
    ]
    if not swapped:
        raise NotComputed(NOT_SWAPPED)
    left_out = len(examples) - len(swapped)
    empty = sum(not (probe.swapped_rationale or "").strip() for _, _, probe in swapped)
    notes = {
        f"{left_out} of {len(examples)} records have no rationale for two labels and are left out": left_out,
        f"{empty} of {len(swapped)} rationales for another label are empty": empty,
    }
    return swapped, told(notes)
