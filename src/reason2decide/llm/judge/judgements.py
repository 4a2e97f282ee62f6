"""Select the predictions to judge, and summarize judgements: means, agreement, files."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from reason2decide.console import say
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.predictions import NO_ANSWER, Prediction, read_predictions
from reason2decide.data.records import Record
from reason2decide.errors import DataError
from reason2decide.evaluation.agreement import alpha_interval, kappa_interval
from reason2decide.evaluation.examples import align, group_indices
from reason2decide.evaluation.metrics.base import Examples, Integers, ratio
from reason2decide.evaluation.metrics.rationales import pooled
from reason2decide.evaluation.probes import (
    Probe,
    answer_hash,
    probes_about,
    probes_path,
    read_probes,
    write_probes,
)
from reason2decide.evaluation.results import MetricValue
from reason2decide.evaluation.settings import DEFAULT_SETTINGS, RESAMPLES
from reason2decide.evaluation.statistics import LEVEL, bootstrap, percentile_interval
from reason2decide.files import new_file
from reason2decide.llm.judge.pairwise import Pair, Pairwise
from reason2decide.llm.judge.pointwise import NO_DECISION, Judge, JudgedCase, Pointwise, Work
from reason2decide.llm.judge.rubric import LEVELS, Criterion
from reason2decide.syntax import Malformed, parse_json
from reason2decide.version import __version__

Scores = Mapping[str, tuple[float, float]]  # id -> (score on the scale, expected score)


@dataclass(frozen=True)
class JudgedSplit:
    """The predictions to judge, and the settings of the intervals."""

    predictions: Path
    dataset: Path
    split: str = DEFAULT_SETTINGS.split
    rationale_source: str | None = None
    records: int | None = None
    resamples: int = RESAMPLES
    seed: int = 0


class Sample:
    """The records to judge, with their predictions; everything about them that does not come from judges."""

    def __init__(self, asked: JudgedSplit) -> None:
        self.asked = asked
        self.dataset = DatasetFolder.open(asked.dataset)
        self.dataset.verify()
        sources = self.dataset.info.rationale_sources
        self.source = asked.rationale_source or (sources[0] if len(sources) == 1 else None)
        if self.source is not None:
            self.dataset.require_source(self.source)
        self.examples = self.aligned(asked.predictions)
        self.chosen = chosen_by_hash([record.id for record in self.examples.records], asked.records)
        self.position_of = {record.id: i for i, record in enumerate(self.examples.records)}
        self.group_of = group_indices(self.examples.records)

    def aligned(self, predictions: Path) -> Examples:
        """Align the predictions of a file with their records."""
        records, labels = self.dataset.split(self.asked.split), self.dataset.info.labels
        return align(read_predictions(predictions), records, labels, self.source, self.asked.split)

    def reference(self, record: Record) -> str:
        """The expert's decision and rationale."""
        return Work(record.label or "", record.rationales.get(self.source or "", "")).in_words()

    def cases(self) -> list[JudgedCase]:
        """The chosen records with the system's decisions and rationales."""
        return [
            JudgedCase(record.id, record.text, _work(prediction), self.reference(record))
            for record, prediction in self._chosen(self.examples)
        ]

    def pairs(self, against: Path) -> list[Pair]:
        """The chosen records with two systems' predictions."""
        other = self._chosen(self.aligned(against))
        return [
            Pair(record.id, record.text, _work(prediction), _work(other_prediction), self.reference(record))
            for (record, prediction), (_, other_prediction) in zip(self._chosen(self.examples), other, strict=True)
        ]

    def _chosen(self, examples: Examples) -> list[tuple[Record, Prediction]]:
        both = zip(examples.records, examples.predictions, strict=True)
        return [(record, prediction) for record, prediction in both if record.id in self.chosen]

    def groups(self, ids: Sequence[str]) -> Integers | None:
        """The groups of these records; None if there are no groups."""
        return None if self.group_of is None else self.group_of[[self.position_of[id_] for id_ in ids]]

    def unit(self, id_: str) -> int:
        """The group of a record, or the record itself if there are no groups."""
        position = self.position_of[id_]
        return position if self.group_of is None else int(self.group_of[position])

    def mean(self, values: Mapping[str, float]) -> MetricValue:
        """The mean over the records with a value, with its interval."""
        if not values:
            return MetricValue(None, None, None, 0)
        statistics = pooled([(value, 1.0) for value in values.values()], np.arange(len(values)), ())
        draws = bootstrap(
            statistics,
            lambda sums: ratio(sums[..., 0], sums[..., 1]),
            group_of=self.groups(list(values)),
            resamples=self.asked.resamples,
            seed=self.asked.seed,
        )
        return MetricValue(float(np.mean(list(values.values()))), *percentile_interval(draws), len(values))

    def agreement(self, raters: Mapping[str, Scores]) -> dict[str, Any]:
        """Kappa of each pair of raters and alpha of all, over the records that at least two of them rated."""
        ids = [id_ for id_ in self.position_of if sum(id_ in scores for scores in raters.values()) > 1]
        how: dict[str, Any] = {"resamples": self.asked.resamples, "seed": self.asked.seed}
        table = np.array([[scores.get(id_, (np.nan, np.nan)) for id_ in ids] for scores in raters.values()], float)
        table = table.reshape(len(raters), len(ids), 2)
        kappas = {}
        for (i, first), (j, second) in combinations(enumerate(raters), 2):
            both = np.flatnonzero(~np.isnan(table[[i, j], :, 0]).any(0))
            groups = self.groups([ids[k] for k in both])
            kappas[f"{first} ~ {second}"] = asdict(
                kappa_interval(table[i, both, 0].tolist(), table[j, both, 0].tolist(), group_of=groups, **how)
            )
        groups = self.groups(ids)
        return {
            "kappa_quadratic": kappas,
            "alpha_ordinal": asdict(alpha_interval(table[..., 0], "ordinal", group_of=groups, **how)),
            "alpha_interval": asdict(alpha_interval(table[..., 1], "interval", group_of=groups, **how)),
        }

    def signature(self, form: Pointwise | Pairwise, judges: Sequence[Judge]) -> str:
        """Everything besides the predictions that the figures depend on, as in `evaluation.signature`."""
        info = self.dataset.info
        settings = ",".join(f"{name}={value}" for name, value in sorted(form.settings.items())) or "server's"
        parts = [
            f"reason2decide:{__version__}",
            f"dataset:{info.name}@{self.dataset.hashes[self.asked.split][:16]}",
            f"split:{self.asked.split}",
            f"source:{self.source or 'none'}",
            f"records:{self.asked.records or 'all'}",
            f"judges:{'+'.join(judge.in_words() for judge in judges)}",
            f"prompts:{judge_versions(form, judges)}",
            f"settings:{settings}",
            f"ci:percentile-bootstrap-{100 * LEVEL:.0f}",
            f"unit:{'record' if self.group_of is None else 'group'}",
            f"resamples:{self.asked.resamples}",
            f"seed:{self.asked.seed}",
        ]
        return "|".join(parts)


def chosen_by_hash(ids: Iterable[str], count: int | None) -> frozenset[str]:
    """Choose the `count` ids with the lowest SHA-256: the same for every system, and nested for growing counts."""
    ordered = sorted(ids, key=lambda id_: hashlib.sha256(id_.encode()).digest())
    return frozenset(ordered[:count])


def _work(prediction: Prediction) -> Work:
    decision = prediction.predicted_label if prediction.predicted_label != NO_ANSWER else NO_DECISION
    return Work(decision, prediction.rationale or "")


def judge_versions(form: Pointwise | Pairwise, judges: Sequence[Judge]) -> str:
    """The versions of the words that these judges are asked in."""
    return "+".join(dict.fromkeys(form.version(judge.client.endpoint.dialect) for judge in judges))


def read_human(path: Path, criteria: Sequence[Criterion]) -> dict[str, dict[str, int]]:
    """Read human scores, criterion -> id -> level, from a CSV or JSON Lines file with id, criterion and score.

    Criteria that are not judged are skipped.

    Raises:
        DataError: a column is missing, a score is not a level, or a record has two by one criterion; names the line.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected human scores in CSV or JSON Lines")
    scores: dict[str, dict[str, int]] = {criterion.name: {} for criterion in criteria}
    levels = {str(level): level for level in LEVELS}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            jsonl = path.suffix == ".jsonl"
            rows: Iterable[Any] = (parse_json(line) for line in stream) if jsonl else csv.DictReader(stream)
            for number, row in enumerate(rows, 1 if jsonl else 2):
                where = f"{path}, line {number}"
                if not isinstance(row, dict) or not row.keys() >= {"id", "criterion", "score"}:
                    raise DataError(f"{where}: expected id, criterion and score")
                if not isinstance(row["id"], str):
                    raise DataError(
                        f"{where}: the id is {row['id']!r:.40}; expected a string, as the predictions have it"
                    )
                if str(row["score"]) not in levels:
                    raise DataError(f"{where}: the score is {row['score']!r:.40}; expected a level from 1 to 5")
                by_id = scores.get(row["criterion"])
                if by_id is None:
                    continue
                if row["id"] in by_id:
                    raise DataError(f"{where}: {row['id']!r} has two scores by {row['criterion']!r}; give one")
                by_id[row["id"]] = levels[str(row["score"])]
        except (Malformed, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} cannot be read ({error}); expected CSV or JSON Lines") from None
    return scores


def merge_into_probes(file: Path, scores: Mapping[str, Mapping[str, float]], judged_by: Mapping[str, str]) -> None:
    """Merge scores of a file of predictions, criterion -> id -> mean, into its probes.

    They replace earlier scores by the same criteria; probes about answers that the file no longer has are dropped.
    """
    path, predictions = probes_path(file), read_predictions(file)
    earlier = probes_about(read_probes(path) if path.is_file() else (), predictions)
    answers = {prediction.id: answer_hash(prediction) for prediction in predictions}
    probes = {probe.id: replace(probe, about=answers[probe.id]) for probe in earlier if probe.id in answers}
    for id_ in dict.fromkeys(id_ for by_id in scores.values() for id_ in by_id):
        probes.setdefault(id_, Probe(id_, answers[id_]))

    def kept(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name not in scores}

    merged = []
    for probe in probes.values():
        judged = {name: by_id[probe.id] for name, by_id in scores.items() if probe.id in by_id}
        by = {name: judged_by[name] for name in judged}
        merged.append(replace(probe, judged=kept(probe.judged) | judged, judged_by=kept(probe.judged_by) | by))
    with new_file(path, force=True) as partial:
        write_probes(partial, merged)
    say(f"the scores are in {path}: run `r2d evaluate --predictions` again to include them in the results")
