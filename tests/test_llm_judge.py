"""Judges over a real socket: scores, pairs, agreement, files, and texts that give the judge orders."""

from __future__ import annotations

import json
import re
import shutil

import llm_judges
import numpy as np
import pytest
import typer
from judging import FINDINGS, LABELS, RECORDS, judge_for, pairwise, pointwise, rationale
from narrowing import present
from typer.testing import CliRunner

from reason2decide.cli import judge as judge_command
from reason2decide.data.dataset_folder import DatasetInfo, write_dataset
from reason2decide.data.predictions import Prediction, read_predictions
from reason2decide.data.records import Record
from reason2decide.errors import DataError, NotComputed, OutputError
from reason2decide.evaluation.agreement import cohen_kappa, krippendorff_alpha
from reason2decide.evaluation.metrics import Examples
from reason2decide.evaluation.metrics.judged import JudgeComplete, JudgeCorrect, JudgeGrounded, signed
from reason2decide.evaluation.probes import Probe, probes_about, probes_path, read_probes, write_probes
from reason2decide.llm.client.calls import ModelAnswer, TokenLogprob, Usage
from reason2decide.llm.client.endpoint import EndpointError
from reason2decide.llm.judge.judgements import JudgedSplit, chosen_by_hash, merge_into_probes, read_human
from reason2decide.llm.judge.pointwise import JudgedCase, Work, expected_level
from reason2decide.llm.judge.rubric import RubricError, load_rubric
from reason2decide.llm.judge.run import compare_predictions, judge_predictions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    info = DatasetInfo("calls", "triage", LABELS, ("nurse",))
    train = [Record(f"t{i}", "a mild cough", LABELS.values[i % 3], group=f"train {i}") for i in range(3)]
    write_dataset(folder / "data", info, {"train": train, "test": RECORDS})
    return folder


def write_predictions(path, rationales, label=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    predictions = [
        Prediction(record.id, label or present(record.label), None, text)
        for record, text in zip(RECORDS, rationales, strict=True)
    ]
    path.write_text("".join(json.dumps(own.to_json()) + "\n" for own in predictions))
    return path


@pytest.fixture
def asked(folder, tmp_path):
    predictions = write_predictions(tmp_path / "system" / "predictions.jsonl", [rationale(i) for i in range(24)])
    return JudgedSplit(predictions, folder / "data", resamples=200)


def judgements(out):
    return [json.loads(line) for line in (out / "judgements.jsonl").read_text().splitlines()]


def level(i, model="rules"):
    """How much of the text the rationale has, as the rule counts it."""
    return 1 + llm_judges.shared(RECORDS[i].text, rationale(i)) / (3 if model == "strict" else 2)


def level_of_correct(i):
    """How much of the expert's answer it has."""
    expert = Work(RECORDS[i].label, RECORDS[i].rationales["nurse"]).in_words()
    return 1 + llm_judges.shared(expert, rationale(i)) / 2


def expected(level):
    """The mean of the levels that the rule gives the likelihood exp(-2 distance)."""
    weights = np.exp(-2 * np.abs(np.arange(1, 6) - min(5, level)))
    return float(weights @ np.arange(1, 6) / weights.sum())


# --- one rationale ----------------------------------------------------------------------------------------------------


def test_the_expected_level_by_hand():
    def answered(*tokens):
        return ModelAnswer("k", "", "stop", "m", Usage(), "", logprobs=tuple(tokens))

    def token(text, *top):
        likeliest: dict[str, float] = dict(top)
        return TokenLogprob(text, likeliest.get(text, float(np.log(0.5))), tuple((t, p) for t, p in top))

    half, quarter = np.log(0.5), np.log(0.25)
    assert expected_level(ModelAnswer("k", "", "stop", "m", Usage(), ""), 4) == 4
    assert expected_level(answered(token('{"score": 4}')), 4) == 4
    # 4 with 1/2, 5 with 1/4; a quarter went to no level.
    assert expected_level(answered(token("4", ("4", half), ("5", quarter), ("x", quarter))), 4) == pytest.approx(13 / 3)
    # " 2" and "2}" are the same level, 7 is none, and the token that was drawn need not be among the likeliest.
    told = token(" 2", ("2}", quarter), ("3", quarter), ("7", quarter))
    assert expected_level(answered(told), 2) == pytest.approx((2 * 0.75 + 3 * 0.25) / 1)
    # The last one counts: what comes before may be the model thinking aloud.
    assert expected_level(answered(token("3", ("3", 0.0)), token("3", ("3", half), ("5", half))), 3) == pytest.approx(4)


def test_scores_are_the_rules_own(server, log, asked, tmp_path):
    judge = judge_for(server, log)
    result = present(judge_predictions(asked, [judge], pointwise("grounded", "correct"), tmp_path / "out"))
    found = {(own["id"], own["criterion"]): own for own in judgements(tmp_path / "out")}
    assert len(found) == 48 and server.counts()["total"] == 2 * 21
    for i, record in enumerate(RECORDS):
        own = found[record.id, "grounded"]
        if i % 8 == 7:  # no rationale: nobody was asked
            assert own == {**own, "judge": None, "score": 1, "expected": 1.0, "key": None}
            continue
        assert own["judge"] == "rules" and len(own["key"]) == 64
        assert own["expected"] == pytest.approx(expected(level(i)))
        assert own["score"] == pytest.approx(min(5, level(i)), abs=0.5)
        # The gold rationale is the measure of what is correct, and of nothing else.
        assert found[record.id, "correct"]["expected"] == pytest.approx(expected(level_of_correct(i)))
    values = [1.0 if i % 8 == 7 else expected(level(i)) for i in range(24)]
    grounded = result["criteria"]["grounded"]
    assert grounded["value"] == pytest.approx(np.mean(values)) and grounded["n"] == 24
    assert grounded["low"] < grounded["value"] < grounded["high"]
    assert result["without_rationale"] == 3 and result["left_out"] == {"correct": 0, "grounded": 0}
    assert json.loads((tmp_path / "out" / "judge.json").read_text()) == result
    parts = {"judges:rules(chat)", "prompts:judge/2+rubric/1", "settings:max_tokens=64,temperature=0.0", "unit:group"}
    assert parts < set(result["signature"].split("|"))
    assert result["judges"]["rules"] == {
        "model": "rules", "served": ["rules-2026"], "host": f"127.0.0.1:{server.port}", "dialect": "chat",
        "failures": {},
    }  # fmt: skip


def test_judges_are_blind_and_only_correct_shows_the_expert(server, log):
    case = JudgedCase("r", "TEXT", Work("DECISION", "RATIONALE"), "REFERENCE")
    client = judge_for(server, log).client
    for call in pointwise().calls(client, [case]):
        system, user = (message["content"] for message in call.messages)
        nonce = present(re.search(r"<<<DATA (\w{32})\n", user))[1]
        assert nonce not in system
        criterion = load_rubric().criteria[call.id.split()[0]]
        assert ("REFERENCE" in user) == (criterion.name == "correct") == criterion.reference
        for words in ("TEXT", "DECISION", "RATIONALE"):
            assert f"<<<DATA {nonce}\n{words}\nDATA {nonce}>>>" in user
        assert criterion.question in user and all(words in user for words in criterion.levels)
    for dialect in ("systemone", "decisions"):
        (call,) = pointwise().calls(judge_for(server, log, dialect=dialect).client, [case])
        assert "REFERENCE" not in call.state and list(call.questions) == list(load_rubric().criteria)
        for name, question in call.questions.items():
            assert ("REFERENCE" in question.instructions) == (name == "correct")


@pytest.mark.parametrize("dialect", ["systemone", "decisions"])
def test_a_decision_model_is_asked_everything_at_once(server, log, asked, tmp_path, dialect):
    judge = judge_for(server, log, dialect=dialect)
    result = present(judge_predictions(asked, [judge], pointwise(), tmp_path / "out"))
    assert server.counts()["total"] == 21
    found = {(own["id"], own["criterion"]): own for own in judgements(tmp_path / "out")}
    assert len(found) == 24 * 5
    for i, record in enumerate(RECORDS):
        if i % 8 != 7:
            assert found[record.id, "readable"]["expected"] == pytest.approx(expected(level(i)))
            assert found[record.id, "correct"]["expected"] == pytest.approx(expected(level_of_correct(i)))
    assert any(abs(level(i) - level_of_correct(i)) >= 1 for i in range(24))
    assert "prompts:judge_decision/2+rubric/1|" in result["signature"]


def test_servers_without_log_probabilities(server, log, asked, tmp_path, capsys):
    server.faults(always={"kind": "refuse", "fields": ["logprobs"]})
    judge = judge_for(server, log)
    judge_predictions(asked, [judge], pointwise("grounded"), tmp_path / "out")
    said = capsys.readouterr().err
    assert "the server refuses logprobs" in said and "gave no log-probabilities with 21 of 21 answers" in said
    found = [own for own in judgements(tmp_path / "out") if own["judge"]]
    assert all(own["expected"] == own["score"] for own in found) and len(found) == 21
    sent = server.counts()["total"]
    assert 21 < sent <= 21 + 4  # some to find out
    judge_predictions(asked, [judge_for(server, log)], pointwise("grounded"), tmp_path / "again")
    assert server.counts()["total"] == sent and judgements(tmp_path / "again") == judgements(tmp_path / "out")


def test_a_judge_that_fails_leaves_records_out_until_it_is_asked_again(server, log, asked, tmp_path, capsys):
    server.faults(queue=[{"kind": "none"}] * 16 + [{"kind": "refusal"}] * 5)
    judges = [judge_for(server, log)]
    result = present(judge_predictions(asked, judges, pointwise("grounded"), tmp_path / "out"))
    assert result["left_out"] == {"grounded": 5} and result["criteria"]["grounded"]["n"] == 19
    assert result["judges"]["rules"]["failures"] == {"refused": 5}
    failed = [own for own in judgements(tmp_path / "out") if own.get("failure")]
    assert len(failed) == 5 and all(own["score"] is own["expected"] is None for own in failed)
    assert "refused 5" in capsys.readouterr().err
    assert sum("grounded" in probe.judged for probe in read_probes(asked.predictions.parent / "probes.jsonl")) == 19
    with pytest.raises(OutputError, match="already exists"):
        judge_predictions(asked, judges, pointwise("grounded"), tmp_path / "out")
    again = present(judge_predictions(asked, judges, pointwise("grounded"), tmp_path / "out", force=True))
    assert again["left_out"] == {"grounded": 0} and server.counts()["total"] == 21 + 5


def test_a_run_that_ends_early_goes_on_where_it_was(server, log, asked, tmp_path):
    server.faults(queue=[{"kind": "none"}] * 10, always={"kind": "status", "status": 401})
    with pytest.raises(EndpointError, match="does not accept the key"):
        judge_predictions(asked, [judge_for(server, log)], pointwise("grounded"), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (asked.predictions.parent / "probes.jsonl").exists()
    server.reset()
    judge_predictions(asked, [judge_for(server, log)], pointwise("grounded"), tmp_path / "out")
    assert server.counts()["total"] == 11 and set(server.counts()["calls"].values()) == {1}


def test_a_sample_is_the_same_for_all_and_larger_ones_hold_it(server, log, asked, tmp_path):
    ids = [record.id for record in RECORDS]
    few, more = chosen_by_hash(ids, 6), chosen_by_hash(ids[::-1], 12)
    assert few < more and len(few) == 6 and chosen_by_hash(ids, None) == set(ids)
    split = JudgedSplit(asked.predictions, asked.dataset, records=6)
    result = present(judge_predictions(split, [judge_for(server, log)], pointwise("grounded"), tmp_path / "out"))
    assert {own["id"] for own in judgements(tmp_path / "out")} == few
    assert result["criteria"]["grounded"]["n"] == 6 and "records:6|" in result["signature"]


# --- several judges, and people ---------------------------------------------------------------------------------------


def test_agreement_of_judges_with_each_other_and_with_people(server, log, asked, tmp_path):
    human = tmp_path / "human.csv"
    people = {i: int(np.clip(round(level(i)) - (i % 3 == 0), 1, 5)) for i in range(20) if i % 8 != 7}
    lines = [f"r {i},grounded,{score}" for i, score in people.items()]
    human.write_text("\n".join(["id,criterion,score", *lines, "r 1,style,3"]) + "\n")
    judges = [judge_for(server, log, "rules", "kind"), judge_for(server, log, "strict", "harsh")]
    result = present(judge_predictions(asked, judges, pointwise("grounded"), tmp_path / "out", human=human))
    told = [i for i in range(24) if i % 8 != 7]
    scores: dict[str, dict[int, tuple[int, float]]] = {name: {} for name in ("kind", "harsh")}
    for own in judgements(tmp_path / "out"):
        if own["judge"]:
            scores[own["judge"]][int(own["id"][2:])] = (own["score"], own["expected"])
    # Those without a rationale agree by rule, so they do not count.
    a, b = (np.array([scores[name][i] for i in told]) for name in ("kind", "harsh"))
    agreement = result["agreement"]["grounded"]
    kappa_of_both = cohen_kappa(a[:, 0].tolist(), b[:, 0].tolist())
    assert agreement["kappa_quadratic"]["kind ~ harsh"]["value"] == pytest.approx(kappa_of_both)
    assert agreement["alpha_ordinal"]["value"] == pytest.approx(krippendorff_alpha([a[:, 0], b[:, 0]]))
    by_expected = krippendorff_alpha([a[:, 1], b[:, 1]], "interval")
    assert agreement["alpha_interval"]["value"] == pytest.approx(by_expected)
    assert agreement["alpha_interval"]["low"] < by_expected < agreement["alpha_interval"]["high"]
    assert agreement["alpha_interval"]["n"] == 21
    mean = np.mean([a[:, 1], b[:, 1]], axis=0)
    assert result["criteria"]["grounded"]["value"] == pytest.approx((mean.sum() + 3) / 24)
    assert result["by_judge"]["kind"]["grounded"]["value"] == pytest.approx(a[:, 1].mean())
    beside = result["human"]["grounded"]
    assert set(beside) == {"kind", "harsh", "mean"}
    rated = [k for k, i in enumerate(told) if i in people]
    own = list(people.values())
    kappa = beside["kind"]["kappa_quadratic"]["human ~ kind"]
    assert kappa["value"] == pytest.approx(cohen_kappa(own, a[rated, 0].tolist())) and kappa["n"] == len(people)
    assert beside["mean"]["alpha_interval"]["value"] == pytest.approx(
        krippendorff_alpha([own, mean[rated]], "interval")
    )
    assert beside["kind"]["alpha_interval"]["value"] > beside["harsh"]["alpha_interval"]["value"]


def test_scores_by_people_that_cannot_be_used(tmp_path):
    criteria = load_rubric().chosen(["grounded"])
    lines = tmp_path / "h.jsonl"
    lines.write_text('{"id": "a", "criterion": "grounded", "score": 4}\n')
    assert read_human(lines, criteria) == {"grounded": {"a": 4}}
    for text, problem in [
        ("id,score\na,4\n", "line 2: expected id, criterion and score"),
        ("id,criterion,score\na,grounded,4.5\n", "line 2: the score is '4.5'; expected a level from 1 to 5"),
        ("id,criterion,score\na,grounded,4\na,grounded,4\n", "line 3: 'a' has two scores"),
    ]:
        file = tmp_path / "h.csv"
        file.write_text(text)
        with pytest.raises(DataError, match=problem):
            read_human(file, criteria)
    lines.write_text("{")
    with pytest.raises(DataError, match=r"cannot be read \(not valid JSON"):
        read_human(lines, criteria)
    with pytest.raises(DataError, match="is not a file"):
        read_human(tmp_path / "none.csv", criteria)


# --- two systems ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["chat", "systemone", "decisions"])
def test_pairs_in_both_orders(server, log, asked, folder, tmp_path, dialect):
    texts = [
        rationale(i) if i % 3 == 0 else " ".join(FINDINGS[: 2 + i % 5]) if i % 3 == 1 else "No reason."
        for i in range(24)
    ]
    against = write_predictions(tmp_path / "other" / "predictions.jsonl", texts)
    form, judges = pairwise("grounded"), [judge_for(server, log, dialect=dialect)]
    result = present(compare_predictions(asked, against, judges, form, tmp_path / "out"))
    assert server.counts()["total"] == 2 * 16  # equal answers are ties, and nobody is asked
    wins = []
    for i, record in enumerate(RECORDS):
        works = [Work(present(record.label), text).in_words() for text in (rationale(i), texts[i])]
        gap = llm_judges.shared(record.text, works[0]) - llm_judges.shared(record.text, works[1])
        wins.append(0.5 + 0.5 * np.sign(gap))
    values = result["criteria"]["grounded"]
    sure = 1 if dialect == "chat" else 0.7  # a decision model gives the winner 0.8, the loser and the tie 0.1 each
    assert values["win_rate"]["value"] == pytest.approx(np.mean([0.5 + sure * (win - 0.5) for win in wins]))
    assert values["win_rate"]["n"] == 24 and values["equal"] == 8 and values["left_out"] == 0
    asked_about = [win for i, win in enumerate(wins) if i % 3]
    counts = {name: asked_about.count(worth) for name, worth in (("own", 1.0), ("tie", 0.5), ("other", 0.0))}
    assert values["verdicts"] == counts and counts["own"] and counts["other"]
    assert values["flips"]["value"] == 0 and values["first_favoured"] == 0.5
    # The other way round everything is.
    swapped = JudgedSplit(against, asked.dataset, resamples=200)
    mirrored = present(compare_predictions(swapped, asked.predictions, judges, form, tmp_path / "mirrored"))
    assert mirrored["criteria"]["grounded"]["win_rate"]["value"] == pytest.approx(1 - values["win_rate"]["value"])
    assert server.counts()["total"] == 2 * 16  # the same calls


def test_a_judge_with_a_favourite_place_is_found_out(server, log, asked, folder, tmp_path):
    against = write_predictions(tmp_path / "other" / "predictions.jsonl", [f"{rationale(i)} Yes." for i in range(24)])
    judges = [judge_for(server, log, "strict"), judge_for(server, log, "rules")]
    result = present(compare_predictions(asked, against, judges[:1], pairwise("grounded"), tmp_path / "out"))
    values = result["criteria"]["grounded"]
    assert values["win_rate"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 24}
    assert values["flips"]["value"] == 1 and values["first_favoured"] == 1
    several = present(compare_predictions(asked, against, judges, pairwise("grounded"), tmp_path / "both"))
    both = several["criteria"]["grounded"]
    assert both["verdicts"] == {"own": 0, "tie": 48, "other": 0} and both["flips"]["value"] == 0.5
    assert both["agreement"]["alpha_interval"]["value"] is None  # neither prefers anything


# --- in the results ---------------------------------------------------------------------------------------------------


def test_scores_join_the_results(server, log, asked, tmp_path):
    beside = asked.predictions.parent / "probes.jsonl"
    write_probes(beside, [Probe("r 1", label_from_rationale="home care", judged={"grounded": 5.0, "complete": 2.0})])
    form = pointwise("grounded", "correct")
    result = present(judge_predictions(asked, [judge_for(server, log)], form, tmp_path / "out"))
    probes = {probe.id: probe for probe in read_probes(beside)}
    assert probes["r 1"].label_from_rationale == "home care" and probes["r 1"].judged["complete"] == 2.0
    assert probes["r 1"].judged["grounded"] == pytest.approx(expected(level(1)))
    examples = Examples(RECORDS, read_predictions(asked.predictions), LABELS, "nurse", [probes[r.id] for r in RECORDS])
    for metric in (JudgeGrounded(), JudgeCorrect()):
        statistics = metric.statistics(examples)
        own = result["criteria"][metric.criterion]
        assert metric.aggregate(statistics.total()) == pytest.approx(own["value"]) and len(statistics) == own["n"]
    one = JudgeComplete().statistics(examples)
    assert one.positions.tolist() == [1] and "23 of 24 records were not judged" in one.notes[0]
    metrics = signed((JudgeGrounded(), JudgeCorrect()), examples.probes)
    assert metrics[0].signature() == "rules(chat),judge/2+rubric/1"
    assert metrics[1].signature() == "rules(chat),judge/2+rubric/1,source nurse"
    # Another judge's scores by a criterion take the place of all of the first one's.
    merge_into_probes(asked.predictions, {"grounded": {"r 2": 3.5}}, {"grounded": "another"})
    judged = {probe.id: probe for probe in read_probes(beside)}
    assert [id_ for id_, probe in judged.items() if "grounded" in probe.judged] == ["r 2"]
    assert judged["r 2"].judged_by == {"grounded": "another", "correct": "rules(chat),judge/2+rubric/1,source nurse"}


def test_scores_are_of_the_answers_that_were_judged(server, log, asked, tmp_path):
    judge_predictions(asked, [judge_for(server, log)], pointwise("grounded"), tmp_path / "judged")
    mine = asked.predictions
    rival = mine.with_name("rival.jsonl")
    shutil.copy(mine, rival)
    # Another file in the same folder has scores of its own.
    assert probes_path(rival) == mine.with_name("rival.probes.jsonl") and not probes_path(rival).exists()
    # What is predicted anew at the same place does not inherit the scores of what was there.
    predictions = read_predictions(mine)
    write_predictions(mine, ["Quite another reason.", *(own.rationale for own in predictions[1:])])
    about = probes_about(read_probes(probes_path(mine)), read_predictions(mine))
    assert {own.id for own in predictions} - {probe.id for probe in about} == {predictions[0].id}
    merge_into_probes(mine, {"grounded": {predictions[1].id: 2.0}}, {"grounded": "another"})
    kept = {probe.id: probe for probe in read_probes(probes_path(mine))}
    assert predictions[0].id not in kept and kept[predictions[1].id].judged == {"grounded": 2.0}


def test_results_say_when_nobody_was_asked():
    predictions = [Prediction(record.id, present(record.label), None, "so") for record in RECORDS]
    with pytest.raises(NotComputed, match="run `r2d judge`"):
        JudgeGrounded().statistics(Examples(RECORDS, predictions, LABELS))
    with pytest.raises(NotComputed, match="run `r2d judge`"):
        JudgeGrounded().statistics(Examples(RECORDS, predictions, LABELS, None, [Probe(r.id) for r in RECORDS]))


# --- the rubric, and the command --------------------------------------------------------------------------------------


def test_a_rubric_of_ones_own(tmp_path):
    assert list(load_rubric(tmp_path).criteria) == ["correct", "supports", "grounded", "complete", "readable"]
    own = tmp_path / "rubric.toml"
    levels = 'levels = ["a", "b", "c", "d", "e"]'
    own.write_text(f'version = "mine"\n[criteria.kind]\nquestion = "Is it kind?"\n{levels}\n')
    assert load_rubric(tmp_path).chosen(None)[0].options() == dict(zip("12345", "abcde", strict=True))
    assert "kind: Is it kind?\n1: a\n2: b" in load_rubric(tmp_path).in_words()
    with pytest.raises(RubricError, match="no criterion 'correct'; it has kind"):
        load_rubric(tmp_path).chosen(["correct"])
    for text, problem in [
        (f'version = "1"\n[criteria.kind]\nquestion = "?"\n{levels}\n', "version other than the package's"),
        ('version = "2"\n[criteria.kind]\nquestion = "?"\nlevels = ["a"]\n', "5 levels from lowest to highest"),
        (f'version = "2"\n[criteria."a b"]\nquestion = "?"\n{levels}\n', "letters a to z"),
        (f'[criteria.kind]\nquestion = "?"\n{levels}\n', "must have a version"),
        ("version = 2", "must have a version"),
        ("version", "is not valid TOML"),
    ]:
        own.write_text(text)
        with pytest.raises(RubricError, match=problem):
            load_rubric(tmp_path)


@pytest.fixture
def command():
    app = typer.Typer()
    judge_command.register(app)
    runner = CliRunner()
    return lambda *words: runner.invoke(app, [str(word) for word in words])


def test_the_command(server, asked, folder, tmp_path, command):
    out = tmp_path / "out"
    common = ("--dataset", asked.dataset, "--base-url", server.base_url, "--model", "rules", "--criteria", "grounded")
    more = ("--judge", f"harsh={server.base_url},strict", "--judge", f"decider={server.base_url},rules,systemone")
    planned = command(asked.predictions, *common, *more, "--out", out, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert server.counts()["total"] == 0 and not out.exists() and planned.stderr.count("to send: 21 calls") == 3
    ended = command(asked.predictions, *common, *more, "--out", out)
    assert ended.exit_code == 0, ended.output
    assert server.counts()["total"] == 3 * 21 and "spent: 63 requests" in ended.stderr
    assert set(json.loads((out / "judge.json").read_text())["judges"]) == {"rules", "harsh", "decider"}
    assert "grounded  judges' alpha (interval)" in ended.stdout
    again = command(asked.predictions, *common, *more, "--out", out, "--force")
    assert again.exit_code == 0 and server.counts()["total"] == 63
    other = write_predictions(tmp_path / "other" / "predictions.jsonl", ["Nothing."] * 24)
    ended = command(asked.predictions, *common, "--against", other, "--out", tmp_path / "pairs")
    assert ended.exit_code == 0 and "grounded  win rate" in ended.stdout
    assert "grounded: Is what the rationale says" in command("--rubric").stdout


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--judge", "harsh"), "expected NAME=URL,MODEL"),
        (("--judge", "mean=http://localhost/v1,m"), "a unique name"),
        (("--judge", "rules=http://localhost/v1,m"), "a unique name"),
        (("--judge", "far=http://example.org/v1,m"), "not this machine"),
        (("--judge", "x=http://localhost/v1,m,poem"), "the dialect is 'poem'"),
        (("--dialect", "poem"), "the dialect is 'poem'"),
        (("--against", "p.jsonl", "--human", "h.csv"), "one of the two"),
        (("--criteria", "style"), "no criterion 'style'"),
    ],
)
def test_what_the_command_refuses(server, asked, tmp_path, command, words, problem):
    common = ("--dataset", asked.dataset, "--base-url", server.base_url, "--model", "rules", "--out", tmp_path / "out")
    refused = command(asked.predictions, *common, *words)
    assert problem in str(refused.exception) and server.counts()["total"] == 0
