"""The model card: all 31 attributes, nothing filled that nobody measured, and text that stays text."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from reason2decide.data.predictions import Prediction
from reason2decide.data.recipe import InputRecipe
from reason2decide.data.records import LabelSet, Record
from reason2decide.data.words import escaped
from reason2decide.errors import ConfigError
from reason2decide.evaluation.measure import Origin, evaluate
from reason2decide.evaluation.settings import Settings
from reason2decide.model.calibration import Calibration
from reason2decide.model.manifest import Manifest
from reason2decide.model.prompt_encoder import Lengths
from reason2decide.report.model_card import SMALLEST_CELL, model_card
from reason2decide.report.source_attributes import SOURCE_ATTRIBUTES, read_answers

LABELS = LabelSet(("home care", "see a doctor"), ordinal=True, urgent="last")
HASHES = {"train": "aa" * 32, "validation": "bb" * 32, "test": "cc" * 32}
MANIFEST = Manifest(
    method="r2d",
    base="tiny",
    labels=LABELS,
    lengths=Lengths(input=64, rationale=16, label=20),
    rationale_sources={"stage1": "llm", "stage2": "nurse"},
    dataset={"name": "calls", "sha256": HASHES},
    training={"stage2": {"selection": "macro_f1", "best_value": 0.5, "best_step": 7}},
    versions={"torch": "2.13"},
    created="2026-01-01T00:00:00+00:00",
)
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
NASTY = (
    "<script>x</script> | a | `b` *c* __d__ ~~e~~ [f](http://g) ![h](i) &lt; &amp;\n\n# j\n- k\n```\nl\n| m |\n|---|"
)
FIXED = {"output_value", "output_type", "cautioned_uses", "known_limits", "training_criteria", "input_variables"}
FIXED |= {"updates"}


def results_of(digest=HASHES["test"], columns=("sex",), values=("female", "male"), labels=LABELS, **meta):
    """60 records: every fourth is decided wrong, and these all have the first of the two values of `sex`."""
    records, predictions = [], []
    for i in range(60):
        gold = labels.values[i // 2 % 2]
        other = labels.values[1 - labels.values.index(gold)]
        records.append(Record(f"r{i}", f"text of {i}", gold, meta={"sex": values[i % 2], **meta}))
        predicted = other if i % 4 == 0 else gold
        predictions.append(
            Prediction(f"r{i}", predicted, {predicted: 0.75, (other if predicted == gold else gold): 0.25})
        )
    calibration = Calibration.fit([np.log([0.75, 0.25])] * 20, [0] * 15 + [1] * 5)
    settings = Settings(resamples=200, slices=tuple(columns))
    origin = Origin("calls", digest, "test", "calls model")
    return evaluate(predictions, records, labels, origin, settings, calibration=calibration).results


def sections(card):
    """The body of each attribute by its key, in the card's order."""
    parts = re.split(r"^\*\*(\d+)\. .*\*\* \(`(\w+)`\)$", card.split("## Source attributes")[1], flags=re.MULTILINE)
    bodies = [re.split(r"^### ", body, flags=re.MULTILINE)[0].strip() for body in parts[3::3]]
    assert [int(number) for number in parts[1::3]] == list(range(1, 32))
    return dict(zip(parts[2::3], bodies, strict=True))


def tables(card):
    """The cells of each table's rows, as an independent parser reads them."""
    found: list[list[list[str]]] = []
    row: list[str] = []
    for token in PARSER.parse(card):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            row = []
        elif token.type == "inline" and token.level >= 4:
            row.append("".join(child.content for child in token.children))
        elif token.type == "tr_close":
            found[-1].append(row)
    return found


def test_the_31_attributes_in_their_nine_groups():
    groups: dict[str, list[int]] = {}
    for attribute in SOURCE_ATTRIBUTES:
        groups.setdefault(attribute.group, []).append(attribute.number)
    assert [len(numbers) for numbers in groups.values()] == [4, 4, 2, 4, 2, 4, 5, 4, 2]
    assert [attribute.number for attribute in SOURCE_ATTRIBUTES] == list(range(1, 32))
    assert len({attribute.key for attribute in SOURCE_ATTRIBUTES}) == 31
    card = model_card(MANIFEST)
    assert list(sections(card)) == [attribute.key for attribute in SOURCE_ATTRIBUTES]
    headings = re.findall(r"^### (.*)$", card, re.MULTILINE)
    assert headings == list(groups)


def test_it_begins_with_what_a_reader_must_know():
    head = model_card(MANIFEST).split("## Source attributes")[0]
    assert head.startswith("# calls: r2d from tiny\n")
    assert "- Labels: home care, see a doctor (ordinal, the last is the most urgent)" in head
    assert "- stage2: best macro\\_f1 0.5000 on validation, at step 7" in head
    assert "A qualified person must verify" in head and "longer than 64 tokens" in head


def test_without_results_nothing_is_filled_but_what_training_recorded():
    found = sections(model_card(MANIFEST))
    assert {key for key, body in found.items() if not body.startswith("Not assessed: to be filled by ")} == FIXED
    assert all("Not assessed beyond this" in found[key] for key in FIXED - {"output_value", "output_type"})
    assert HASHES["train"] in found["training_criteria"] and "torch 2.13" in found["updates"]
    assert "home care, see a doctor" in found["output_value"] and "deploying organisation" in found["local_validity"]
    assert not tables(model_card(MANIFEST))


def test_a_model_without_rationales_claims_none():
    found = sections(model_card(replace(MANIFEST, method="sft", rationale_sources={})))
    assert "writes no rationale" in found["output_value"] and "generated text" not in found["output_type"]
    assert "rationale" not in found["known_limits"]


def test_figures_are_those_of_the_results():
    results = results_of()
    found = sections(model_card(MANIFEST, results))
    (table,) = tables(found["test_validity"])
    computed = {name: own for name, own in results.metrics.items() if own.value is not None}
    assert len(table) == 1 + len(computed) and "accuracy" in computed and "bleu" not in computed
    for row, own in zip(table[1:], computed.values(), strict=True):
        interval = "no interval" if own.low is None else f"{own.low:.3f} to {own.high:.3f}"
        assert row[1:] == [f"{own.value:.3f}", interval, str(own.n)]
    assert table[1][:2] == ["Accuracy (higher is better)", "0.750"]
    assert "Not computed: " in found["test_validity"] and "BLEU" in found["test_validity"]
    assert f"temperature {results.calibration.temperature:.3f}; Log loss" in found["test_validity"]
    assert "Not assessed" not in found["test_validity"] + found["test_fairness"]
    assert found["external_validity"].startswith("Not assessed") and found["local_validity"].startswith("Not assessed")
    # Of 30 records to be seen by a doctor (i // 2 odd) those with i % 4 == 0 are none, so all misses are over-triage.
    assert "Under-triage was measured: 0.000 (95 % interval 0.000 to 0.000, n = 60)." in found["known_limits"]
    assert "The label with the lowest recall: home care, 0.500 of 30 records." in found["known_limits"]


def test_slices_stand_under_fairness():
    found = sections(model_card(MANIFEST, results_of()))
    (table,) = tables(found["test_fairness"])
    assert [row[0] for row in table] == ["sex", "female", "male"] and [row[-1] for row in table] == ["n", "30", "30"]
    # Even records are female, and half of these are wrong.
    accuracy = table[0].index("Accuracy (higher is better)")
    assert table[1][accuracy].startswith("0.500 (") and table[2][accuracy] == "1.000 (1.000 to 1.000)"
    assert "- Accuracy by sex: largest gap 0.500, lowest for female, highest for male" in found["test_fairness"]
    assert "Under-triage by sex" not in found["test_fairness"]  # there is no gap
    assert "- sex: female 30, male 30" in found["training_representativeness"]
    assert "Not assessed beyond this" in found["training_representativeness"]


def test_the_length_of_texts_tells_of_no_patient():
    found = sections(model_card(MANIFEST, results_of(columns=("length",))))
    assert found["test_fairness"].startswith("Not assessed") and not tables(found["test_fairness"])
    assert found["training_representativeness"].startswith("Not assessed")


@pytest.mark.parametrize(("n", "shown"), [(SMALLEST_CELL, True), (SMALLEST_CELL - 1, False)])
def test_small_groups_are_not_published(n, shown):
    results = results_of()
    female, male = results.slices["sex"]
    rest = replace(male, n=60 - n)
    found = sections(model_card(MANIFEST, replace(results, slices={"sex": (replace(female, n=n), rest)})))
    (table,) = tables(found["test_fairness"])
    assert ("female" in [row[0] for row in table]) == shown == ("largest gap" in found["test_fairness"])
    assert ("of fewer than 11 records, not shown here: 1" in found["test_fairness"]) != shown
    rare = {"home care": {**results.per_label["home care"], "support": n}}
    least = sections(model_card(MANIFEST, replace(results, per_label={**results.per_label, **rare})))["known_limits"]
    assert ("The label with the lowest recall: home care" in least) == shown
    assert f"female {n if shown else 'fewer than 11'}, male" in found["training_representativeness"]


def test_splits_that_training_used_are_no_test():
    card = model_card(MANIFEST, results_of(HASHES["validation"]))
    assert sections(card) == sections(model_card(MANIFEST))


def test_other_data_stand_under_the_external_attributes_with_a_reservation():
    found = sections(model_card(MANIFEST, results_of("dd" * 32)))
    assert found["test_validity"].startswith("Not assessed") and found["test_fairness"].startswith("Not assessed")
    assert tables(found["external_validity"])[0][1][:2] == ["Accuracy (higher is better)", "0.750"]
    assert tables(found["external_fairness"])[0][1][0] == "female"
    assert "was not assessed" in found["external_data"] and "dd" * 32 in found["external_data"]
    for key in ("external_data", "external_representativeness", "external_validity", "external_fairness"):
        assert "Not assessed beyond this: to be filled by whoever evaluates" in found[key]
    assert found["external_party"].startswith("Not assessed: ")


def test_answers_are_marked_and_displace_no_measurement(tmp_path):
    file = tmp_path / "answers.toml"
    file.write_text('funding = "A grant"\ntest_validity = "Excellent"\nknown_limits = """\nNot for\nchildren"""\n')
    answers = read_answers(file)
    found = sections(model_card(MANIFEST, results_of(), answers))
    plain = sections(model_card(MANIFEST, results_of()))
    assert found["funding"] == "Stated, not measured: A grant"
    assert found["test_validity"] == plain["test_validity"] + "\n\nStated, not measured: Excellent"
    assert found["known_limits"].endswith("\n\nStated, not measured: Not for children")
    assert "Not assessed" not in found["known_limits"]
    assert {key for key in found if found[key] != plain[key]} == set(answers)


def test_bad_answers_are_refused_all_at_once(tmp_path):
    file = tmp_path / "answers.toml"
    file.write_text('fundin = "x"\nquux = "x"\nintended_use = 3\noutcomes = " "\n')
    with pytest.raises(ConfigError) as caught:
        read_answers(file)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{file}:" and len(lines) == 5
    assert lines[1] == "  - 'fundin' is not a source attribute; did you mean 'funding'?"
    assert "'quux' is not a source attribute; keys are developer, funding, " in lines[2]
    assert lines[3] == "  - intended_use is of type int; expected text, or leave the key out"
    assert lines[4] == "  - outcomes is empty; expected text, or leave the key out"
    file.write_text("funding")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_answers(file)
    with pytest.raises(ConfigError, match="is not a file"):
        read_answers(tmp_path / "none.toml")


def shown_text(token):
    kinds = {child.type for child in token.children}
    assert kinds <= {"text"}, kinds
    return "".join(child.content for child in token.children)


@given(st.text() | st.text(alphabet="-+=*_`~#!$[]()<>|\\&;.:0123456789ab \n\t\x00\u202e"))
@example(NASTY)
@example("1. a")
@example("12) a")
@example("---")
@example("\\|")
@example("&#124; &copy;")
def test_escaped_text_shows_as_it_is_wherever_it_stands(text):
    expected = " ".join(re.sub("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", " ", text).split())
    shown = escaped(text)
    card = f"# T {shown}\n\n{shown}\n\n- {shown}\n\n| a | b |\n| --- | --- |\n| {shown} | {shown} |\n"
    inline = [shown_text(token) for token in PARSER.parse(card) if token.type == "inline"]
    paragraph = [expected] if expected else []
    assert inline == [f"T {expected}".strip(), *paragraph, *paragraph, "a", "b", expected, expected]


def test_text_of_data_and_of_users_injects_nothing():
    labels = LabelSet((f"a {NASTY}", f"b {NASTY}"), ordinal=True, urgent="last")
    manifest = replace(
        MANIFEST,
        base=NASTY,
        labels=labels,
        rationale_sources={"stage1": NASTY},
        dataset={"name": NASTY, "sha256": {**HASHES, NASTY: NASTY}},
        versions={NASTY: NASTY},
        created=NASTY,
    )
    results = results_of(columns=("sex", NASTY), values=(f"f {NASTY}", f"m {NASTY}"), labels=labels, **{NASTY: NASTY})
    results = replace(results, system=NASTY, dataset=NASTY, split=NASTY, signature=NASTY, notes=(NASTY, f"- {NASTY}"))
    answers = dict.fromkeys((attribute.key for attribute in SOURCE_ATTRIBUTES), NASTY)
    tame = model_card(MANIFEST, results_of(columns=("sex", "site"), site="x"), dict.fromkeys(answers, "x"))
    card = model_card(manifest, results, answers)
    tokens = PARSER.parse(card)
    assert {token.type for token in tokens} == {token.type for token in PARSER.parse(tame)}
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert kinds == {"text", "softbreak", "strong_open", "strong_close", "code_inline"}
    assert card.count("\n### ") == 9 and len(sections(card)) == 31
    assert all(len(row) == len(table[0]) for table in tables(card) for row in table)
    assert [len(table) for table in tables(card)] == [len(table) for table in tables(tame)]


# --- what is derived from the input recipe ----------------------------------------------------------------------------


def attribute_12(manifest: Manifest) -> str:
    card = model_card(manifest)
    return card[card.index("**12.") : card.index("**13.")]


def test_columns_that_a_text_is_made_of_are_input_features() -> None:
    recipe = InputRecipe(text=("Sex", "Age", "Complaint <b>"))
    said = attribute_12(replace(MANIFEST, recipe=recipe))
    assert "each of which is an input feature: Sex, Age, Complaint" in said and "<b>" not in said
    assert "Sex (sex); Age (date of birth)" in said and "Not assessed beyond this" in said


@pytest.mark.parametrize("recipe", [None, InputRecipe(text=("note",)), InputRecipe("bioasq")])
def test_of_free_text_nothing_is_claimed(recipe: InputRecipe | None) -> None:
    said = attribute_12(replace(MANIFEST, recipe=recipe))
    assert "was not assessed" in said and "None of them" not in said and "Not assessed beyond this" in said
