"""The dataset check: what it counts, what it calls invalid, and that it reads by streaming."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from reason2decide.cli import app
from reason2decide.data.check import CheckReport, check_dataset
from reason2decide.data.dataset_folder import DatasetFolder, DatasetInfo, write_dataset
from reason2decide.data.near_duplicates import THRESHOLD, signature
from reason2decide.data.records import LabelSet, Record
from reason2decide.errors import BaseModelError, DataError
from reason2decide.model.hub import TokenCounter, load_tokenizer

INFO = DatasetInfo("calls", "triage", LabelSet(("home", "doctor")), ("nurse",))
VOCABULARY = [f"word{i}" for i in range(2000)]


def note(seed: int, words: int = 60) -> str:
    return " ".join(np.random.default_rng(seed).choice(VOCABULARY, words))


def case(number: int, **changes: object) -> Record:
    values = {"id": str(number), "text": note(number), "label": INFO.labels.values[number % 2]}
    return Record(**{**values, "rationales": {"nurse": f"because of {number}"}, **changes})  # type: ignore[arg-type]


def dataset(path: Path, *extra_train: Record, info: DatasetInfo = INFO) -> Path:
    splits = {
        "train": [*(case(i) for i in range(20)), *extra_train],
        "validation": [case(i) for i in range(100, 104)],
        "test": [case(i) for i in range(200, 206)],
    }
    write_dataset(path, info, splits)
    return path


def append(path: Path, split: str, record: Record) -> None:
    """Add a record to a dataset by hand, as `write_dataset` would refuse to."""
    with (path / f"{split}.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record.to_json()) + "\n")


def errors(report: CheckReport) -> str:
    return "\n".join(report.errors)


def test_a_sound_dataset_is_valid(tmp_path: Path) -> None:
    report = check_dataset(dataset(tmp_path / "d"))
    assert report.ok and not report.findings
    assert report.records == {"train": 20, "validation": 4, "test": 6}
    assert report.labels["test"] == {"doctor": 3, "home": 3}
    assert report.lengths["text"] == {"p50": 60, "p90": 60, "p99": 60, "max": 60}
    assert report.lengths["rationale of nurse"]["max"] == 3 and report.length_unit == "words"
    assert report.sources["nurse"]["train"].present == 20


def test_length_quantiles_are_those_of_the_sorted_lengths(tmp_path: Path) -> None:
    extra = [case(1000 + i, text=note(1000 + i, i)) for i in range(1, 71)]  # with 30 texts of 60 words: 100 in all
    report = check_dataset(dataset(tmp_path / "d", *extra))
    lengths = sorted([60] * 30 + list(range(1, 71)))
    assert report.lengths["text"] == {"p50": lengths[49], "p90": lengths[89], "p99": lengths[98], "max": 70}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_text_of_train_in_another_split_is_an_error(tmp_path: Path, split: str) -> None:
    number = {"validation": 101, "test": 202}[split]
    copied = case(500, text=case(number).text.upper().replace(" ", "  "))
    report = check_dataset(dataset(tmp_path / "d", copied))
    assert not report.ok
    assert f"1 records of {split} are also in train ({number} = 500)" in errors(report)
    assert report.duplicates["exact"] == {f"{split} in train": 1} and not report.duplicates["near"]


def test_equal_questions_with_other_choices_are_no_duplicates(tmp_path: Path) -> None:
    info = DatasetInfo("q", "t", LabelSet())
    options = [
        Record(str(i), "Which is true?", f"{note(i, 9)}", choices=(note(i, 9), note(i + 50, 9))) for i in range(3)
    ]
    write_dataset(tmp_path / "d", info, {"train": options[:1], "validation": options[1:2], "test": options[2:]})
    report = check_dataset(tmp_path / "d")
    assert report.ok and report.open_labels and not report.warnings


def test_near_duplicates_are_warned_of(tmp_path: Path) -> None:
    words = case(203).text.split()
    almost = case(500, text=" ".join([*words[:-1], "other"]))
    half = case(501, text=" ".join([*words[:30], *note(999, 30).split()]))
    report = check_dataset(dataset(tmp_path / "d", almost, half))
    assert report.ok
    assert report.duplicates["near"] == {"test in train": 1}
    assert report.warnings == ["1 records of test have a near duplicate in train (203 ~ 500)"]


@pytest.mark.parametrize("shared", [0, 20, 40, 60, 80, 99])
def test_signatures_estimate_the_jaccard_similarity_of_word_5_grams(shared: int) -> None:
    errors = []
    for seed in range(20):
        words = note(seed, 100).split()
        other = [*words[:shared], *note(seed + 10_000, 100 - shared).split()]
        grams = [{tuple(one[i : i + 5]) for i in range(96)} for one in (words, other)]
        jaccard = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        errors.append(np.mean(signature(" ".join(words)) == signature(" ".join(other))) - jaccard)
    assert abs(np.mean(errors)) < 0.05  # unbiased: the standard error of 20 x 64 draws is at most 0.014
    assert np.max(np.abs(errors)) < 0.3 and THRESHOLD == 0.8


def test_short_texts_have_signatures() -> None:
    assert (signature("fever") == signature("Fever!")).all()
    assert (signature("a b c d") != signature("e f g h")).any()
    assert signature("...").shape == (64,)


def test_invalid_records_added_by_hand_are_errors(tmp_path: Path) -> None:
    path = dataset(tmp_path / "d", case(300, group="patient 1"))
    append(path, "test", case(301, group="patient 1"))
    append(path, "test", case(302, label="hospital"))
    append(path, "train", case(200, text="another text altogether"))
    append(path, "train", Record("303", "no label at all"))
    report = check_dataset(path)
    for message in (
        "was changed after import",
        "1 records belong to a group that is also in another split ('patient 1' (test and train))",
        "2 labels cannot be used: test: record '302' has the label 'hospital'",
        "record '303' has no label",
        "1 ids are repeated: '200' (again in train)",
    ):
        assert message in errors(report)


def test_warnings(tmp_path: Path) -> None:
    info = DatasetInfo("calls", "t", LabelSet(("home", "doctor", "ambulance")), ("nurse", "llm"))
    extra = [
        case(400, rationales={"nurse": "The answer is [LABEL] or <mask>."}),
        case(401, rationales={}),
        case(402, label="doctor", rationales={"nurse": "See a Doctor."}),
        case(403, text=case(3).text),
    ]
    report = check_dataset(dataset(tmp_path / "d", *extra, info=info))
    assert report.ok
    assert report.masks == {"rationale of nurse": {"[LABEL]": 1}}
    assert report.sources["nurse"]["train"].missing == 1
    assert report.sources["nurse"]["train"].states_label == 1
    warnings = "\n".join(report.warnings)
    for message in (
        "1 records have a mask in their rationale of nurse ([LABEL])",
        "1 records of train repeat the text of another record of train (403)",
        "no record has a rationale of source 'llm'",
        "no record of train or validation or test has the label 'ambulance'",
    ):
        assert message in warnings


def test_the_command_prints_the_report_and_exits_with_one(tmp_path: Path) -> None:
    runner = CliRunner()
    path = dataset(tmp_path / "d")
    result = runner.invoke(app, ["data", "check", str(path)])
    assert result.exit_code == 0 and result.stdout.endswith("valid\n")
    assert "lengths in words" in result.stdout and "3 (50%)" in result.stdout
    append(path, "train", case(500, text=case(201).text))
    result = runner.invoke(app, ["data", "check", str(path)])
    assert result.exit_code == 1 and "error: 1 records of test are also in train" in result.stdout
    result = runner.invoke(app, ["data", "check", str(path), "--json"])
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["ok"] is False and content["duplicates"]["exact"] == {"test in train": 1}
    assert isinstance(runner.invoke(app, ["data", "check", str(tmp_path)]).exception, DataError)


def test_the_synthesize_command_says_that_it_is_synthetic(tmp_path: Path) -> None:
    runner = CliRunner()
    assert "not clinical advice" in " ".join(runner.invoke(app, ["data", "synthesize", "--help"]).stdout.split())
    sizes = ["--train", "40", "--validation", "10", "--test", "10"]
    result = runner.invoke(app, ["data", "synthesize", "--out", str(tmp_path / "d"), *sizes])
    assert result.exit_code == 0 and "clinical advice" in result.stderr
    assert len(DatasetFolder.open(tmp_path / "d").split("train")) == 40


def test_lengths_in_tokens_of_a_base(tmp_path: Path) -> None:
    import tokenizers
    import transformers

    whole = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    whole.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    base = tmp_path / "base"
    transformers.PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>").save_pretrained(base)
    report = check_dataset(
        dataset(tmp_path / "d"), count=TokenCounter(load_tokenizer(str(base))), unit="tokens of the base"
    )
    assert report.lengths["text"]["max"] == 61 and report.length_unit == "tokens of the base"
    with pytest.raises(BaseModelError, match="neither a folder nor a downloaded model"):
        load_tokenizer(str(tmp_path / "absent"))
    with pytest.raises(BaseModelError, match="trained on the training split"):
        load_tokenizer("tiny")


def test_train_is_streamed(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / str(count)
        texts = [Record(f"t{i}", f"{i} " + "long note " * 250, INFO.labels.values[i % 2]) for i in range(10)]
        train = (Record(str(i), f"{i} " + "other words " * 250, INFO.labels.values[i % 2]) for i in range(count))
        write_dataset(path, INFO, {"train": train, "validation": texts[:5], "test": texts[5:]})
        tracemalloc.start()
        check_dataset(path)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(2000) < peak(500) + 1_500_000  # what is kept of 1,500 records more; their texts are 4,500,000 bytes
