"""Files as people have them, imported and decided on: nothing is lost or made up without a word."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import triage_bundle

from reason2decide.data.cases import Cases
from reason2decide.data.check import check_dataset
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.predictions import read_predictions
from reason2decide.data.records import Record
from reason2decide.data.sources.choices import spellings
from reason2decide.data.sources.rows import guessed_delimiter, open_table, stop
from reason2decide.errors import DataError

LABELS = ["call an ambulance", "home care", "see a doctor"]


class Done(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return " ".join(f"{self.stdout} {self.stderr}".split())


def r2d(*arguments: object) -> Done:
    done = subprocess.run([sys.executable, "-m", "reason2decide", *map(str, arguments)], capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


def imported(source: Path, out: Path, *options: str, columns: tuple[str, str] = ("note", "disposition")) -> Done:
    named = ("--text", columns[0], "--label", columns[1])
    done = r2d("data", "import", "table", source, "--out", out, *named, "--split", "0.4,0.3,0.3", *options)
    assert done.exit_code == 0, done.output
    return done


def records(folder: Path) -> list[Record]:
    dataset = DatasetFolder.open(folder)
    return [record for split in dataset.hashes for record in dataset.split(split)]


# --- cases to decide on -----------------------------------------------------------------------------------------------


def test_an_unclosed_quote_swallows_no_rows(shared_cases: Path, tmp_path: Path) -> None:
    """F03: refused before anything is decided, with the row that the quotation begins in."""
    out = tmp_path / "out.jsonl"
    done = r2d("predict", triage_bundle(), shared_cases / "F03_predict_unclosed_quote.csv", "--out", out)
    assert done.exit_code == 2 and "row 2 (line 3)" in done.stderr and "check the quotation marks" in done.stderr
    assert not out.exists()
    assert r2d("predict", triage_bundle(), shared_cases / "F03_predict_unclosed_quote.csv").stdout == ""


@pytest.mark.parametrize("name", ["F16_predict_semicolon.csv", "cases.json", "cases.jsonl", "cases.tsv"])
def test_cases_of_any_format_are_read(name: str, shared_cases: Path, tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "chest pain since one hour"}, {"id": 2, "text": "sore throat", "label": 3, "group": []}]
    (tmp_path / "cases.json").write_text("\ufeff" + json.dumps(rows, indent=1))
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "cases.tsv").write_text("id\ttext\tlabel\n1\tchest pain since one hour\t1\n2\tsore throat\t\n")
    path = (tmp_path if name.startswith("cases") else shared_cases) / name
    done = r2d("predict", triage_bundle(), path)
    assert done.exit_code == 0 and "2 rows read, 2 decided, 0 skipped" in done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["1", "2"]


def test_a_row_with_other_cells_is_told_and_the_others_decided(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text('id,text\n1,chest pain,since 2 days\n\n,\n2,"mild\nrash"\n3,fever,,\n')
    bad: list[DataError] = []
    found = list(Cases(path).records(bad.append))
    assert [(record.id, record.text) for record in found] == [("2", "mild\nrash"), ("3", "fever")]
    (told,) = bad
    assert "row 1 (line 2): 3 cells, but the header has 2" in str(told)
    assert Cases(path).count() == 3


def test_without_an_id_a_case_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_text('sep=;\n\ntext;n\n"a\nb";1\nc;2\n')
    assert [(record.id, record.text) for record in Cases(path).records(stop)] == [("4", "a\nb"), ("6", "c")]


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [("a,b;c,d", ","), ("a;b;c", ";"), ("a\tb", "\t"), ("note", ","), ('"a;b;c",d', ","), ("a|b|c,d", "|")],
)
def test_the_header_shows_the_delimiter(header: str, delimiter: str) -> None:
    assert guessed_delimiter(header, ",") == delimiter


def test_what_spreadsheets_add_is_left_out(shared_cases: Path, tmp_path: Path) -> None:
    """F17: rows of empty cells, a line `sep=;`, columns without a name."""
    imported(shared_cases / "F17_blank_rows.csv", tmp_path / "a")
    imported(shared_cases / "F17_sep_line.csv", tmp_path / "b")
    (tmp_path / "c.csv").write_text("note,,disposition,\n" + "".join(f"n{i},,{'ab'[i % 2]},\n" for i in range(12)))
    imported(tmp_path / "c.csv", tmp_path / "c")
    assert [len(records(tmp_path / name)) for name in "abc"] == [12, 12, 12]
    assert "chest pain since one hour, sweating, age 61" in {record.text for record in records(tmp_path / "b")}


def test_binary_text_of_parquet_is_text(shared_cases: Path, tmp_path: Path) -> None:
    """F08, as Impala writes strings."""
    imported(shared_cases / "F08_impala_binary.parquet", tmp_path / "d", columns=("note", "label"))
    assert not any("b'" in record.text or "b'" in str(record.label) for record in records(tmp_path / "d"))
    assert [type(row["note"]) for _, row in open_table(shared_cases / "F08_impala_binary.parquet").rows(["note"])] == (
        [str] * 12
    )


def test_labels_that_differ_in_spelling_are_one(shared_cases: Path, tmp_path: Path) -> None:
    """F09, undeclared and declared."""
    for folder, options in (("found", ()), ("declared", ("--labels", ",".join(LABELS)))):
        done = imported(shared_cases / "F09_label_variants.csv", tmp_path / folder, *options)
        assert sorted(DatasetFolder.open(tmp_path / folder).info.labels.values) == LABELS
        assert {record.label for record in records(tmp_path / folder)} == set(LABELS)
        assert "spelling" in done.output
    assert (
        "'Home care' -> 'home care' (1)" in imported(shared_cases / "F09_label_variants.csv", tmp_path / "again").output
    )


def test_spellings_by_hand() -> None:
    counts = {"1": 3, "1.0": 5, "1.00": 1, "1.5": 2, "caf\u00e9": 1, "cafe\u0301": 2, "Yes": 1, "yes.": 1, "no": 1}
    assert spellings(counts) == {"1": "1.0", "1.00": "1.0", "caf\u00e9": "cafe\u0301", "yes.": "Yes"}


@given(st.dictionaries(st.text(max_size=4), st.integers(1, 9)))
def test_spellings_lead_to_labels_that_stay(counts: dict[str, int]) -> None:
    found = spellings(counts)
    assert not set(found.values()) & set(found)
    assert all(counts[right] >= counts[wrong] for wrong, right in found.items())


def test_rationales_that_say_there_is_none_are_none(shared_cases: Path, tmp_path: Path) -> None:
    """F14: NA, nan, NULL, N/A, \\N, None."""
    done = imported(shared_cases / "F14_na_rationales.csv", tmp_path / "d", "--rationale", "nurse=reason")
    assert "6 rationales say only that there is none" in done.output
    assert sum(bool(record.rationales) for record in records(tmp_path / "d")) == 6


def test_contradicting_duplicates_are_told(shared_cases: Path, tmp_path: Path) -> None:
    """F21: the same note in capitals with another label; at import, and by the check."""
    done = imported(shared_cases / "F21_conflicting_labels.csv", tmp_path / "d", columns=("note", "label"))
    count = done.output.partition(" records have the text of an earlier one with another label")[0]
    (told,) = [warning for warning in check_dataset(tmp_path / "d").warnings if "another label" in warning]
    assert count.split()[-1] == told.split()[0] == "5"
    assert "decide which is right" in told


def test_two_spellings_of_what_a_label_may_mean_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("note,label\na,YES\nb,no\n")
    columns = ("--text", "note", "--label", "label", "--labels", "Yes,yes,no")
    done = r2d("data", "import", "table", tmp_path / "t.csv", "--out", tmp_path / "d", *columns)
    assert done.exit_code == 2 and "the label 'YES' is not in the declared set 'Yes', 'yes', 'no'" in done.output


def test_data_cannot_move_the_cursor_of_a_terminal(tmp_path: Path) -> None:
    rows = "".join(
        f"note {number},{('home', 'see' + chr(27) + '[2J' + chr(0x9B))[number % 2]}\n" for number in range(12)
    )
    (tmp_path / "t.csv").write_text("note,disposition\n" + rows)
    imported(tmp_path / "t.csv", tmp_path / "d")
    for options in ((), ("--json",)):
        done = r2d("data", "check", tmp_path / "d", *options)
        assert "\x1b" not in done.stdout and "\x9b" not in done.stdout and "[2J" in done.stdout
    assert "see\x1b[2J\x9b" in json.loads(done.stdout)["labels"]["train"]


def test_pubmedqa_as_the_hub_has_it(shared_cases: Path, tmp_path: Path) -> None:
    """F18."""
    done = r2d("data", "import", "pubmedqa", shared_cases / "F18_hf_pubmedqa.jsonl", "--out", tmp_path / "d")
    assert done.exit_code == 0, done.output
    (first,) = [record for record in records(tmp_path / "d") if record.id == "1"]
    assert (
        first.text == "question: Does treatment 1 help?\nBACKGROUND: Background 1.\nMETHODS: 1 patients were treated."
    )
    assert (first.label, first.rationales) == ("no", {"human": "Treatment 1 helped."})
    (tmp_path / "bad.jsonl").write_text('{"pubid": 1}\n')
    bad = r2d("data", "import", "pubmedqa", tmp_path / "bad.jsonl", "--out", tmp_path / "e")
    assert bad.exit_code == 2 and "line 1: expected a pubid, a question and a context" in bad.output


def test_a_snippet_without_text_is_left_out(tmp_path: Path) -> None:
    def question(number: int, answer: str) -> dict[str, object]:
        snippets = [{"text": None}, {"text": "Yes it does."}]
        return {
            "id": f"q{number}",
            "type": "yesno",
            "body": f"Does {number}?",
            "exact_answer": answer,
            "snippets": snippets,
        }

    (tmp_path / "b.json").write_text(json.dumps({"questions": [question(i, ("yes", "no")[i % 2]) for i in range(20)]}))
    done = r2d("data", "import", "bioasq", tmp_path / "b.json", "--out", tmp_path / "d")
    assert done.exit_code == 0, done.output
    assert all(record.text.endswith("?\nsnippet: Yes it does.") for record in records(tmp_path / "d"))


def test_predictions_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('\ufeff{"id": "a", "predicted_label": "b"}\n', "utf-8")
    assert [prediction.id for prediction in read_predictions(tmp_path / "p.jsonl")] == ["a"]
