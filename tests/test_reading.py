"""Texts over the prompt's limit: how much is read is always told, and each way to read them does what it says."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import TRIAGE, train_bundle
from test_predictor import LENGTHS, new_bundle
from tiny_models import build
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from reason2decide.cli import app
from reason2decide.data.dataset_folder import DatasetInfo, write_dataset
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import BundleError, ConfigError, DataError
from reason2decide.evaluation.settings import Settings
from reason2decide.model.calibration import OperatingPoint, label_distribution
from reason2decide.model.decision import Decision
from reason2decide.model.predictor import Predictor
from reason2decide.model.prompt_encoder import PromptEncoder
from reason2decide.model.reading import (
    MOST_WINDOWS,
    OVERLAP,
    ReadingSettings,
    deciding_window,
    explaining_window,
    positions_of,
    windows,
)
from reason2decide.workflows.evaluate import evaluate_bundle

LONG = " ".join(f"on day {day} the caller was calm and had no fever." for day in range(60))
HOME, DOCTOR, AMBULANCE = TRIAGE.values


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt its task, with prompts of 64 tokens."""
    return train_bundle(tmp_path_factory.mktemp("triage"), steps=60)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_bundle(tmp_path_factory.mktemp("t5"), "r2d")


def decide(predictor: Predictor, text: str) -> Decision:
    (decision,) = predictor.decide([Record("1", text)])
    assert isinstance(decision, Decision)
    return decision


# --- windows ----------------------------------------------------------------------------------------------------------


def test_windows_by_hand() -> None:
    assert windows(10, 10) == [(0, 10)]
    assert windows(11, 8) == [(0, 8), (3, 11)]
    assert windows(20, 8) == [(0, 8), (6, 14), (12, 20)]
    assert windows(0, 8) == [(0, 0)]


@given(st.integers(0, 5000), st.integers(1, 600))
def test_windows_cover_the_text_and_overlap(tokens: int, room: int) -> None:
    parts = windows(tokens, room)
    assert parts[0][0] == 0 and len(parts) <= MOST_WINDOWS
    assert all(end - begin == min(room, tokens) for begin, end in parts)
    assert all(after[0] <= before[1] - int(OVERLAP * room) for before, after in pairwise(parts))
    assert all(after[1] > before[1] for before, after in pairwise(parts))
    if parts[-1][1] < tokens:
        assert len(parts) == MOST_WINDOWS


def test_the_most_urgent_window_decides() -> None:
    calm, doctor, alarm, surer_alarm = (
        {HOME: 0.98, DOCTOR: 0.01, AMBULANCE: 0.01},
        {HOME: 0.1, DOCTOR: 0.8, AMBULANCE: 0.1},
        {HOME: 0.3, DOCTOR: 0.3, AMBULANCE: 0.4},
        {HOME: 0.2, DOCTOR: 0.2, AMBULANCE: 0.6},
    )
    assert deciding_window([calm, alarm, doctor, surer_alarm], TRIAGE) == surer_alarm
    first = LabelSet(TRIAGE.values, ordinal=True, urgent="first")
    assert deciding_window([alarm, calm, doctor], first) == calm
    no_order = LabelSet(TRIAGE.values)
    mean = deciding_window([calm, alarm], no_order)
    assert mean == pytest.approx({HOME: 0.64, DOCTOR: 0.155, AMBULANCE: 0.205})
    assert explaining_window([calm, alarm, surer_alarm, doctor], AMBULANCE) == 2
    assert explaining_window([calm, alarm], DOCTOR) == 1  # neither answers it; here it is more probable


# --- what a predictor reads -------------------------------------------------------------------------------------------


def test_a_cut_text_is_decided_on_its_beginning_and_told(untrained: Path) -> None:
    predictor = Predictor.load(untrained)
    whole, cut = decide(predictor, "no cough"), decide(predictor, LONG)
    assert not whole.cut and whole.tokens == whole.tokens_read == predictor.encoder.text_ids(["no cough"])[0].__len__()
    assert cut.cut and cut.tokens_read == predictor.encoder.room(predict=True) < cut.tokens
    assert decide(predictor, f"{LONG} and now chest pain").probabilities == cut.probabilities
    assert str(predictor.cut_texts) == "2 of 3"


def test_what_is_not_read_is_deferred_or_refused(untrained: Path) -> None:
    deferring = Predictor.load(untrained, ReadingSettings("defer"))
    deferring.operating_point = OperatingPoint(0, 0)  # sure enough of everything
    assert not decide(deferring, "no cough").deferred and decide(deferring, LONG).deferred
    refusing = Predictor.load(untrained, ReadingSettings("refuse"))
    good, bad = refusing.decide([Record("1", "no cough"), Record("2", LONG)])
    assert isinstance(good, Decision)
    room, tokens = refusing.encoder.room(predict=True), decide(deferring, LONG).tokens
    assert str(bad) == f"the text has {tokens} tokens and {room} fit in the model's prompt; send less"


def test_longer_prompts_are_what_the_same_model_says_without_a_limit(untrained: Path) -> None:
    longer = Predictor.load(untrained, ReadingSettings("refuse", 2000))
    decision = decide(longer, LONG)
    assert not decision.cut
    prompt = longer.encoder.decide(longer.encoder.text_ids([LONG])[0])
    assert len(prompt) == decision.tokens + len(longer.encoder.decide([])) > LENGTHS.input
    (scores,) = longer.engine.score_labels([prompt], [longer.encoder.candidates(longer.bundle.manifest.labels.values)])
    assert list(decision.probabilities)[scores.argmax()] == decision.label


def test_a_base_with_absolute_positions_refuses_longer_prompts(untrained: Path) -> None:
    assert positions_of(build("t5")[0].config) is None
    positions = positions_of(build("bart")[0].config)
    assert positions is not None
    predictor = Predictor.load(untrained)
    predictor.engine.positions = positions
    Predictor(predictor.bundle, predictor.engine, ReadingSettings("decide", positions))
    with pytest.raises(BundleError, match=rf"reads prompts of at most {positions} tokens, {positions + 1} are asked"):
        Predictor(predictor.bundle, predictor.engine, ReadingSettings("decide", positions + 1))


def test_impossible_readings() -> None:
    with pytest.raises(ConfigError, match="long_texts is 'guess'; expected one of decide, defer, refuse, windows"):
        ReadingSettings("guess")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="input_tokens is 3; expected at least 16"):
        ReadingSettings(input_tokens=3)


def test_windows_decide_and_explain_as_their_parts_do(bundle: Path) -> None:
    """F01: what stands at the end counts. Each part is asked by itself, as a whole prompt."""
    predictor = Predictor.load(bundle, ReadingSettings("windows"))
    encoder, labels = predictor.encoder, TRIAGE.values
    text = ". " * 40 + "40 yo with chest pain since 2 days. " * 3 + "40 yo with mild rash since 2 days. " * 8
    tokens = encoder.text_ids([text])[0]
    parts = [tokens[begin:end] for begin, end in windows(len(tokens), encoder.room(predict=True))]
    scores = predictor.engine.score_labels(
        [encoder.decide(part) for part in parts], [encoder.candidates(labels)] * len(parts)
    )
    temperature = predictor.bundle.calibration.temperature
    alone = [dict(zip(labels, label_distribution(own, temperature).tolist(), strict=True)) for own in scores]
    answers = [max(own, key=own.__getitem__) for own in alone]
    assert len(set(answers)) > 1  # the parts do not agree
    most_urgent = max(answers, key=labels.index)
    decision = decide(predictor, text)
    assert decision.label == most_urgent and not decision.cut
    assert decision.confidence == pytest.approx(
        max(own[most_urgent] for own, answer in zip(alone, answers, strict=True) if answer == most_urgent), abs=1e-5
    )
    place = explaining_window(alone, most_urgent)
    (ids,) = predictor.engine.generate([encoder.explain(parts[place], most_urgent)], encoder.lengths.rationale)
    reason = encoder.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert predictor.rationales([Record("1", text)], [most_urgent]) == [reason]
    assert "".join(predictor.stream(Record("1", text), most_urgent)) == reason


def test_windows_of_an_unreadably_long_text_are_told(bundle: Path) -> None:
    decision = decide(Predictor.load(bundle, ReadingSettings("windows"), error_rate=1), "mild rash and calm. " * 2000)
    assert (
        decision.cut
        and decision.deferred
        and decision.tokens_read
        == decision.tokens - (decision.tokens - windows(decision.tokens, decision_room(bundle))[-1][1])
    )


def decision_room(bundle: Path) -> int:
    return Predictor.load(bundle).encoder.room(predict=True)


def test_own_choices_stand_before_every_window(untrained: Path) -> None:
    predictor = Predictor.load(untrained, ReadingSettings("windows"))
    record = Record("1", LONG, choices=("rash", "cough"))
    text = predictor._text(record, predictor.encoder.text_ids([LONG])[0])
    head = predictor.encoder.text_ids(["choices: rash; cough."])[0]
    assert len(text.parts) > 1
    for index, (begin, end) in enumerate(text.parts):
        assert text.part(index) == [*head, *text.tokens[begin:end]]
        assert len(predictor.encoder.decide(text.part(index))) <= LENGTHS.input
    (decision,) = predictor.decide([record])
    assert isinstance(decision, Decision) and set(decision.probabilities) == {"rash", "cough"}


def test_choices_that_fill_the_prompt_are_refused(untrained: Path) -> None:
    """Without its text every such case would be decided alike."""
    predictor = Predictor.load(untrained, ReadingSettings("windows"))
    choices = tuple(f"choice number {i}" for i in range(40))
    (found,) = predictor.decide([Record("1", "chest pain", choices=choices)])
    assert isinstance(found, DataError) and "leave no room for its text" in str(found)


@pytest.mark.parametrize("text", ["\u00ad", "\u200b \u200b"])
def test_a_text_of_which_nothing_is_read_is_refused(text: str, untrained: Path) -> None:
    predictor = Predictor.load(untrained)
    bad, good = predictor.decide([Record("1", text), Record("2", "no cough")])
    assert isinstance(bad, DataError) and "nothing to decide on" in str(bad) and isinstance(good, Decision)
    with pytest.raises(DataError, match="record '1': the model's tokenizer reads nothing"):
        list(predictor.predict([Record("1", text)]))


def test_unknown_characters_alone_are_nothing_to_read() -> None:
    words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "fever": 2, "a": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    encoder = PromptEncoder(tokenizer, LENGTHS)
    assert not encoder.reads(encoder.text_ids(["\U0001f600 cough"])[0])
    assert encoder.reads(encoder.text_ids(["cough fever"])[0])
    assert not encoder.reads([])


def test_the_command_tells_how_much_was_read(bundle: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.jsonl"
    flag = "40 yo with mild rash since 2 days. " * 12 + "chest pain"
    cases.write_text("\n".join(json.dumps({"id": id, "text": text}) for id, text in (("a", "mild rash"), ("b", flag))))

    def rows(*options: str) -> list[dict[str, object]]:
        done = CliRunner().invoke(app, ["predict", str(bundle), str(cases), *options])
        assert done.exit_code == 0, done.stderr
        told = "1 of 2 texts are longer than the model reads (64 tokens in a prompt)" in done.stderr.replace("\n", " ")
        assert told == (not options or options[1] == "defer")
        return [json.loads(line) for line in done.stdout.splitlines()]

    short, cut = rows()
    assert short["tokens"] == short["tokens_read"] and cut["tokens_read"] < cut["tokens"]  # type: ignore[operator]
    assert rows("--long-texts", "defer")[1]["deferred"] is True
    assert rows("--long-texts", "windows")[1]["tokens_read"] == cut["tokens"]
    assert [row["id"] for row in rows("--long-texts", "refuse")] == ["a"]
    assert rows("--input-tokens", "500")[1]["tokens_read"] == cut["tokens"]


def test_results_say_how_texts_were_read(bundle: Path, tmp_path: Path) -> None:
    """Two readings are two results: the signature differs, and a note says what was not read."""
    long = [Record(f"l{number}", LONG, TRIAGE.values[number % 3]) for number in range(3)]
    records = [*(Record(f"s{number}", "mild rash", HOME) for number in range(3)), *long]
    info = DatasetInfo("long", "triage", TRIAGE)
    data = write_dataset(
        tmp_path / "long", info, {"train": records[:1], "validation": records[1:2], "test": records[2:]}
    )
    found = {}
    for way in ("decide", "windows"):
        settings = Settings(long_texts=way, probed=0, resamples=20)
        found[way] = evaluate_bundle(bundle, data.path, tmp_path / way, settings)
    assert "3 of 4 texts are longer than the model reads, and their rest was not read" in found["decide"].notes
    assert all(f"|long_texts:{way}|" in found[way].signature for way in found)
    rows = [json.loads(line) for line in (tmp_path / "decide" / "predictions.jsonl").read_text().splitlines()]
    assert [row["tokens_read"] < row["tokens"] for row in rows] == [False, True, True, True]
