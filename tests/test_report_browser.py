"""The pages in headless Chromium, opened from a file: the browser of cases, print, phones, and hostile data."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
from report_data import HOSTILE, LABELS, MARKUP, SEX, comparison, data, report, training_log

from reason2decide.data.predictions import NO_ANSWER, Prediction
from reason2decide.data.records import LabelSet, Record
from reason2decide.report import render_comparison


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page without a network; what it complains of or asks for fails the test."""

    @contextmanager
    def opened(html, width=1200, **options):
        path = tmp_path / "report.html"
        path.write_text(html, "utf-8")
        context = browser.new_context(viewport={"width": width, "height": 800}, offline=True, **options)
        page = context.new_page()
        complaints, requests = [], []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        if options.get("java_script_enabled", True) and "<script" in html:
            page.wait_for_selector("html.live", state="attached")
        yield page
        assert (complaints, requests) == ([], [path.as_uri()])
        context.close()

    return opened


def hand_made() -> tuple[list[Record], list[Prediction], LabelSet]:
    """Six cases: one wrong, one without an answer, each with words and a confidence of its own."""
    rows = [
        ("a1", "Fever since Monday", "home care", "home care", 0.9, "F"),
        ("a2", "No fever. Cough", "home care", "see a doctor", 0.5, "M"),
        ("a3", "Chest pain", "call an ambulance", "call an ambulance", 0.7, "F"),
        ("a4", "CHEST tightness and fever", "see a doctor", "see a doctor", 0.8, "M"),
        ("a5", "Rash", "home care", NO_ANSWER, None, "F"),
        ("a6", "Itch", "see a doctor", "see a doctor", 0.6, "F"),
    ]
    records = [
        Record(id_, text, gold, {"nurse": f"gold of {id_}"}, meta={"sex": sex}) for id_, text, gold, *_, sex in rows
    ]
    predictions = [
        Prediction(
            id_,
            predicted,
            None if p is None else {label: p if label == predicted else (1 - p) / 2 for label in LABELS},
            f"Because of {text.split()[0].lower()}." if predicted else None,
        )
        for id_, text, _, predicted, p, _ in rows
    ]
    return records, predictions, LabelSet(LABELS)


def ids(page):
    return page.locator("#list .case h3").all_inner_texts()


def test_filters_find_what_they_should(opened):
    with opened(report(*hand_made(), slices=(SEX,))) as page:
        form = page.locator("#filters")
        assert set(ids(page)) == {"a1", "a2", "a3", "a4", "a5", "a6"} and set(ids(page)[:2]) == {"a2", "a5"}
        for value, expected in (("Right", {"a1", "a3", "a4", "a6"}), ("Wrong", {"a2"}), ("No answer", {"a5"})):
            form.get_by_text(value, exact=True).first.click()
            assert set(ids(page)) == expected
        form.get_by_text("All", exact=True).click()
        for label, value, expected in (
            ("Gold label", "home care", {"a1", "a2", "a5"}),
            ("Predicted label", "see a doctor", {"a2", "a4", "a6"}),
            ("Predicted label", "No answer", {"a5"}),
            ("sex", "M", {"a2", "a4"}),
        ):
            page.get_by_role("combobox", name=label, exact=True).select_option(label=value)
            assert set(ids(page)) == expected
            page.get_by_text("Clear").click()
            page.locator("#list .case").nth(5).wait_for()
        page.get_by_label("Probability from").fill("60")
        assert set(ids(page)) == {"a1", "a3", "a4", "a6"}
        page.get_by_label("Probability to").fill("80")
        assert set(ids(page)) == {"a3", "a4", "a6"}
        page.get_by_label("Order").select_option("sure")
        assert ids(page) == ["a4", "a3", "a6"]
        page.get_by_label("Order").select_option("unsure")
        assert ids(page) == ["a6", "a3", "a4"]
        page.get_by_label("Probability from").fill("99")
        assert ids(page) == [] and page.locator("#found").inner_text() == "No case matches. Clear a filter to see more."


def test_reasons_that_do_not_support_their_decision_are_flagged_and_found(opened):
    """The nurse sees which reasons contradict their decision, with scripts and on paper."""
    records, predictions, labels = hand_made()
    doubted = {"a2": False, "a3": True, "a4": False}
    predictions = [replace(own, reason_supports=doubted.get(own.id)) for own in predictions]
    html = report(records, predictions, labels)
    with opened(html) as page:
        shown = page.locator(
            "#list .case", has=page.get_by_text("does not support the decision").locator("visible=true")
        )
        assert set(shown.locator("h3").all_inner_texts()) == {"a2", "a4"}
        page.get_by_label("Only reasons that do not support the decision (2)").check()
        assert set(ids(page)) == {"a2", "a4"}
    assert html.count('data-part="doubt">') == 2 + 1  # the two cases as printed, and the blank one


def test_search_reads_texts_rationales_labels_and_ids(opened):
    with opened(report(*hand_made(), slices=(SEX,))) as page:
        search = page.get_by_label("Search")
        for words, expected in (
            ("fever", {"a1", "a2", "a4"}),
            ("chest FEVER", {"a4"}),  # all words, in any case
            ("because rash", set()),  # that case has no rationale
            ("because itch", {"a6"}),
            ("gold of a3", {"a3"}),
            ("ambulance", {"a3"}),
            ("a5", {"a5"}),
            ("  ", {"a1", "a2", "a3", "a4", "a5", "a6"}),
        ):
            search.fill(words)
            assert set(ids(page)) == expected, words
        search.fill("fever")
        found = page.evaluate("[...CSS.highlights.get('found')].map((range) => range.toString())")
        assert len(found) >= 3 and {word.lower() for word in found} == {"fever"}


def test_a_cell_of_the_confusion_matrix_shows_its_cases(opened):
    with opened(report(*hand_made())) as page:
        cell = page.locator(".matrix td[data-gold='0'][data-predicted='-1'] button")
        cell.focus()
        page.keyboard.press("Enter")
        page.locator("#found", has_text="1 of 6 cases").wait_for()
        assert ids(page) == ["a5"]


def test_pages_of_twenty_by_keyboard(opened):
    with opened(report(*data(45))) as page:
        assert len(ids(page)) == 20 and page.locator("#page").inner_text() == "Page 1 of 3"
        assert page.locator("#found").inner_text() == "45 of 45 cases, 1 to 20 shown"
        first = ids(page)
        for _ in range(2):
            page.locator("#next").focus()
            page.keyboard.press("Enter")
        assert len(ids(page)) == 5 and page.locator("#next").is_disabled()
        assert page.evaluate("document.activeElement.id") == "found"
        page.locator("#previous").press("Enter")
        page.locator("#previous").press("Space")
        assert ids(page) == first
        page.get_by_label("Search").press("Tab")
        page.keyboard.press("ArrowRight")  # the choices of a decision are one stop of the keyboard
        assert page.locator("[name=verdict]:checked").get_attribute("value") == "0"
        assert page.locator("#found").inner_text().startswith("33 of 45 cases")


def test_cited_words_are_marked_and_the_script_shows_what_the_template_does(opened):
    records, predictions, labels = hand_made()
    records[0] = Record("a1", "\U0001f600\U0001f600 fever, fever of 39", "home care", {}, meta={"sex": "F"})
    html = report(records, predictions, labels, slices=(SEX,))
    with opened(html) as page:
        script = dict(zip(ids(page), page.locator("#list .case").all_inner_texts(), strict=True))
        marked = page.locator("#list .case", has_text="of 39").locator("mark").all_inner_texts()
        assert marked == ["fever", "fever"]
        widths = page.locator("#list .rail span").evaluate_all("(all) => all.map((one) => parseFloat(one.style.width))")
        looks = page.locator("#list .case").evaluate_all("(all) => all.map((one) => one.className)")
    with opened(html, java_script_enabled=False) as page:
        cases = page.locator(".static .case")
        static = dict(zip(page.locator(".static h3").all_inner_texts(), cases.all_inner_texts(), strict=True))
        drawn = cases.locator(".rail span").evaluate_all("(all) => all.map((one) => parseFloat(one.style.width))")
        assert drawn == widths
        assert cases.evaluate_all("(all) => all.map((one) => one.className)") == looks
    assert script == static
    assert "None was written." in script["a5"] and "The system gave none." in script["a5"]
    assert "✗ No valid answer" in script["a5"] and "sex: F" in script["a5"]
    assert "The record has none." in script["a1"] and "(gold)" in script["a1"]


def test_hostile_data_is_text(opened):
    labels = (MARKUP, "b" + MARKUP)
    records = [
        Record(f"{i}{MARKUP}", HOSTILE, labels[i % 2], {MARKUP: HOSTILE}, meta={"sex": MARKUP}) for i in range(4)
    ]
    predictions = [Prediction(record.id, labels[0], {labels[0]: 0.5, labels[1]: 0.5}, HOSTILE) for record in records]
    given = {"title": MARKUP, "description": {MARKUP: MARKUP}, "slices": (SEX,)}
    with opened(report(records, predictions, LabelSet(labels), source=MARKUP, **given)) as page:
        assert page.title() == MARKUP and page.locator("b", has_text=re.compile("^bold$")).count() == 0
        shown = [page.locator(f"#list [data-part={part}]").first.text_content() for part in ("text", "rationale")]
        assert shown == [HOSTILE.replace("\ud83d", "?")] * 2
        assert MARKUP in page.locator("#list h3").first.inner_text()
        page.locator("[name=slice]").select_option(MARKUP)
        page.get_by_label("Search").fill("</script><!--<script> {{")
        assert len(ids(page)) == 4 and page.evaluate("document.querySelectorAll('script').length") == 1
        # What turns the page's direction ends where the text does.
        for part in ("text", "rationale"):
            style = f"getComputedStyle(document.querySelector('#list [data-part={part}]')).unicodeBidi"
            assert page.evaluate(style) in ("isolate", "plaintext")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_it_fits_and_follows_the_colour_scheme(opened, width, scheme):
    labels = (*LABELS, "go-to-the-emergency-department-right-now-and-do-not-drive-yourself-there")
    records, predictions, label_set = data(60, labels, MARKUP + " 54F cough " * 200 + "x" * 300)
    predictions[0] = Prediction(predictions[0].id, NO_ANSWER)
    html = report(records, predictions, label_set, training_log=training_log(), slices=("length",))
    with opened(html, width, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
        assert (brightness[0] > brightness[1]) == (scheme == "dark")
        assert page.evaluate("getComputedStyle(document.querySelector('figure text')).fill") == ink


def test_print_shows_the_chosen_cases_and_no_controls(opened):
    with opened(report(*data(60))) as page:
        assert page.locator("#browser").is_visible() and not page.locator(".static").is_visible()
        page.emulate_media(media="print")
        assert page.locator(".static .case").count() == 20 and page.locator(".static .case").last.is_visible()
        assert not page.locator("#browser").is_visible() and not page.locator("header nav").is_visible()


def test_without_scripts_the_chosen_cases_are_there(opened):
    with opened(report(*data(60)), java_script_enabled=False) as page:
        assert page.locator(".static .case").first.is_visible() and page.locator(".static .case").count() == 20
        assert not page.locator("#browser").is_visible() and not page.locator(".live-only").first.is_visible()


def test_open_label_sets_and_systems_without_probabilities(opened):
    records = [Record(f"q{i}", "Which one?", f"answer {i}", choices=(f"answer {i}", "none")) for i in range(3)]
    predictions = [Prediction("q0", "answer 0"), Prediction("q1", "none"), Prediction("q2", NO_ANSWER)]
    with opened(report(records, predictions, LabelSet(), source=None)) as page:
        assert page.get_by_label("Gold label").count() == 0 and page.get_by_label("Probability from").count() == 0
        page.get_by_label("Search").fill("answer 1")
        assert ids(page) == ["q1"]
        shown = page.locator("#list .case").inner_text()
        assert "✗ Wrong: none" in shown and "Gold: answer 1" in shown and "The system gave none." in shown


@pytest.mark.parametrize("width", [1200, 390])
def test_a_comparison_in_a_browser(opened, width):
    with opened(render_comparison(comparison("r2d " * 20, ("signatures differ",)), title="Methods"), width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        row = page.locator("table", has_text="p").locator("tr.better").first
        zero, mark = row.locator(".forest").bounding_box(), row.locator(".forest b").bounding_box()
        assert mark["x"] > zero["x"] + zero["width"] / 2  # higher, and higher is better
        assert page.locator("thead .sides").first.inner_text().split() == ["worse", "better"]
