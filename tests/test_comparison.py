"""Comparing results folders: means over seeds, paired differences, and what is not comparable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from narrowing import present

from reason2decide.data.predictions import NO_ANSWER, Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import ConfigError, DataError
from reason2decide.evaluation.comparison import compare, load_system, signature_differences
from reason2decide.evaluation.measure import Origin, evaluate
from reason2decide.evaluation.metrics.base import SufficientStatistics
from reason2decide.evaluation.results import RESULTS, STATISTICS, load_statistics, read_results, save_statistics
from reason2decide.evaluation.settings import Settings

LABELS = LabelSet(("home", "clinic"), ordinal=True, urgent="last")
N = 120


def write(
    folder: Path,
    right: np.ndarray,
    *,
    groups: bool = False,
    rationales: bool = True,
    origin: Mapping[str, str] | None = None,
) -> Path:
    """A results folder of a system that is right where `right` says so."""
    records = [
        Record(
            f"r{i}",
            "text",
            LABELS.values[i % 2],
            {"nurse": f"fever for {i} days"},
            group=str(i // 3) if groups else None,
        )
        for i in range(len(right))
    ]
    predictions = [
        Prediction(
            r.id, LABELS.values[(i + 1 - int(right[i])) % 2], None, r.rationales["nurse"] if rationales else None
        )
        for i, r in enumerate(records)
    ]
    where = Origin(
        **{"dataset": "calls", "sha256": "ab" * 32, "split": "test", "system": folder.name, **(origin or {})}
    )
    evaluation = evaluate(predictions, records, LABELS, where, Settings(rationale_source="nurse", resamples=100))
    folder.mkdir()
    (folder / RESULTS).write_text(json.dumps(evaluation.results.to_json()))
    save_statistics(folder / STATISTICS, evaluation.statistics, evaluation.group_of)
    return folder


def outcomes(share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(N) < share


def test_means_over_seeds_and_paired_differences(tmp_path: Path):
    good = [write(tmp_path / f"good{s}", outcomes(0.9, s)) for s in range(3)]
    poor = write(tmp_path / "poor", outcomes(0.6, 9), rationales=False)
    comparison = compare([load_system("good", good), load_system("poor", [poor])], "poor", resamples=500)
    seeds = [outcomes(0.9, s).mean() for s in range(3)]
    value = comparison.values["good"]["accuracy"]
    assert value.seeds == pytest.approx(seeds) and value.mean == pytest.approx(np.mean(seeds))
    assert value.spread == pytest.approx(np.std(seeds, ddof=1)) and value.low < value.mean < value.high
    assert comparison.values["poor"]["accuracy"].spread is None
    found = {own.metric: own for own in comparison.differences}
    assert found["accuracy"].difference == pytest.approx(np.mean(seeds) - outcomes(0.6, 9).mean())
    assert found["accuracy"].p_randomization < 0.01 and found["accuracy"].p_holm is None  # exploratory
    assert comparison.primary == ("macro_f1", "under_triage")
    tested = [own for own in comparison.differences if own.p_holm is not None]
    assert {own.metric for own in tested} == {"macro_f1", "under_triage"}
    assert sorted(own.p_holm or 0 for own in tested)[0] == 2 * min(own.p_randomization for own in tested)
    assert found["accuracy"].p_mcnemar is None  # several seeds: no one table of right and wrong
    assert "bleu" not in found and "bleu" in comparison.values["good"]  # only one of the two writes rationales
    # The mean of three seeds is surer than one of them, over the same records.
    single = compare([load_system("one", good[:1]), load_system("poor", [poor])], "poor", resamples=500)
    assert value.high - value.low < single.values["one"]["accuracy"].high - single.values["one"]["accuracy"].low
    assert present({own.metric: own for own in single.differences}["accuracy"].p_mcnemar) < 0.01


def test_a_metric_that_no_record_has_in_every_seed_is_left_out(tmp_path: Path):
    """Each seed has BLEU of its own half of the records; a mean over seeds needs records that both have."""
    folders = [write(tmp_path / f"seed{s}", outcomes(0.8, s)) for s in range(2)]
    system = load_system("halves", folders)
    halves = []
    for statistics, keep in zip(system.statistics, (slice(0, N // 2), slice(N // 2, N)), strict=True):
        bleu = statistics["bleu"]
        halves.append({**statistics, "bleu": replace(bleu, row_of=bleu.row_of[keep], positions=bleu.positions[keep])})
    both = compare([replace(system, statistics=tuple(halves)), load_system("whole", folders)], "whole", resamples=200)
    assert "bleu" not in both.values["halves"] and "bleu" in both.values["whole"]
    assert "bleu" not in {own.metric for own in both.differences} and "accuracy" in both.values["halves"]


def test_a_system_does_not_differ_from_itself(tmp_path: Path):
    one, same = (write(tmp_path / name, outcomes(0.7, 1), groups=True) for name in ("one", "same"))
    comparison = compare([load_system("one", [one]), load_system("same", [same])], "one", resamples=200)
    for own in comparison.differences:
        assert (own.system, own.difference, own.low, own.high) == ("same", 0, 0, 0)
        assert own.p_bootstrap == own.p_randomization == 1 and own.p_holm in (None, 1)
        assert own.p_mcnemar is None  # records of one patient are not independent
    assert comparison.warnings == ()


def test_primary_metrics_are_chosen_by_name(tmp_path: Path):
    systems = [load_system(name, [write(tmp_path / name, outcomes(0.7, s))]) for s, name in enumerate("abc")]
    comparison = compare(systems, "a", primary=["mcc", "bleu", "phi_cct"], resamples=200)
    assert comparison.primary == ("mcc", "bleu")
    assert sum(own.p_holm is not None for own in comparison.differences) == 4
    assert any("since systems lack them: phi_cct" in warning for warning in comparison.warnings)
    with pytest.raises(ConfigError, match="'macrof1' is not a metric; did you mean 'macro_f1'"):
        compare(systems, "a", primary=["macrof1"])


def test_resamples_that_cannot_reach_the_level_are_told(tmp_path: Path):
    """The least adjusted p value is the number of tests over the number of resamples plus one."""
    systems = [load_system(name, [write(tmp_path / name, outcomes(0.7, s))]) for s, name in enumerate("abc")]
    (warning,) = compare(systems, "a", resamples=78).warnings
    assert "78 resamples are too few for 4 tests" in warning and "--resamples 80 or more" in warning
    assert compare(systems, "a", resamples=79).warnings == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"sha256": "cd" * 32}, "their datasets differ"), ({"split": "validation"}, "their splits differ")],
)
def test_results_of_other_records_are_refused(tmp_path: Path, change: dict[str, str], message: str):
    one = write(tmp_path / "one", outcomes(0.7, 1))
    other = write(tmp_path / "other", outcomes(0.7, 1), origin=change)
    with pytest.raises(DataError, match=f"one and other cannot be compared: {message}.*same records"):
        compare([load_system("one", [one]), load_system("other", [other])], "one")


def test_other_settings_are_told_and_seeds_are_not():
    one = "reason2decide:1|source:nurse|seed:0|resamples:10|bleu:[tok:13a]"
    assert signature_differences(one, one.replace("seed:0", "seed:1")) == {}
    assert signature_differences(one, "reason2decide:1|source:nurse|seed:0|chrf:[x]") == {}
    assert signature_differences(one, one.replace("source:nurse", "source:llm")) == {"source": ("nurse", "llm")}
    assert signature_differences(one, one.replace("13a", "intl")) == {"bleu": ("[tok:13a]", "[tok:intl]")}


def test_names_and_reference_are_checked(tmp_path: Path):
    system = load_system("a", [write(tmp_path / "a", outcomes(0.7, 1))])
    for systems in ([system], [system, system]):
        with pytest.raises(DataError, match="at least two systems with different names"):
            compare(systems, "a")
    other = load_system("b", [tmp_path / "a"])
    with pytest.raises(DataError, match="reference 'c' is not one of the systems; choose one of a, b"):
        compare([system, other], "c")


def test_folders_that_hold_no_results(tmp_path: Path):
    with pytest.raises(DataError, match=r"has no results.json; give a folder that `r2d evaluate` wrote"):
        read_results(tmp_path)
    for content, message in (("{", "not valid JSON"), ("[]", "not a JSON object"), ("{}", "format 1")):
        (tmp_path / RESULTS).write_text(content)
        with pytest.raises(DataError, match=message):
            read_results(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load_statistics(tmp_path / STATISTICS)
    save_statistics(
        tmp_path / STATISTICS, {"accuracy": SufficientStatistics(np.eye(99), np.arange(99), np.arange(99))}, None
    )
    whole = (tmp_path / STATISTICS).read_bytes()
    altered = whole[:200] + bytes(99) + whole[299:]
    for damaged in (b"no archive", whole[:-30], altered):
        (tmp_path / STATISTICS).write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            load_statistics(tmp_path / STATISTICS)


def test_values_differences_and_tests_are_those_of_groups(tmp_path: Path) -> None:
    """Three records of a patient that are right or wrong together say what one of them says."""
    one, other = ([i // 3 % k > 0 for i in range(N)] for k in (3, 2))
    found = {}
    for grouped in (True, False):
        folders = [
            write(tmp_path / f"{name} {grouped}", np.array(right), groups=grouped)
            for name, right in (("one", one), ("other", other))
        ]
        systems = [load_system(name, [folder]) for name, folder in zip(("one", "other"), folders, strict=True)]
        compared = compare(systems, "other", resamples=2000)
        (gap,) = [gap for gap in compared.differences if gap.metric == "accuracy"]
        value = compared.values["one"]["accuracy"]
        found[grouped] = gap.high - gap.low, value.high - value.low, gap.p_randomization
    for of_groups, of_records in zip(found[True][:2], found[False][:2], strict=True):
        assert 1.4 < of_groups / of_records < 2.1
    assert found[True][2] > 2 * found[False][2]


def test_unanswered_records_are_named(tmp_path: Path) -> None:
    """Of a system that answers nothing, accuracy 0 alone would say that it is wrong."""
    records = [Record(f"r{i}", "text", LABELS.values[i % 2]) for i in range(N)]
    for name, silent in (("silent", 90), ("whole", 0)):
        own = [Prediction(r.id, NO_ANSWER if i < silent else present(r.label)) for i, r in enumerate(records)]
        where = Origin(dataset="calls", sha256="ab" * 32, split="test", system=name)
        found = evaluate(own, records, LABELS, where, Settings(resamples=20))
        (tmp_path / name).mkdir()
        (tmp_path / name / RESULTS).write_text(json.dumps(found.results.to_json()))
        save_statistics(tmp_path / name / STATISTICS, found.statistics, found.group_of)
    systems = [load_system(name, [tmp_path / name]) for name in ("silent", "whole")]
    warnings = compare(systems, "whole", resamples=20).warnings
    assert "silent gave no answer for 90 of 120 records (75.0%); they count as wrong" in " ".join(warnings)
    assert not any("whole gave" in warning for warning in warnings)
