"""The review pages in headless Chromium: the whole way from a queue to a new model, keys only, and accessibility."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from axe_playwright_python.sync_playwright import Axe
from forks import Forks
from reviewing import PASSWORD, PEOPLE
from serving import Server, running, triage_bundle
from toy import record, settings

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.review.accounts import Accounts
from reason2decide.review.store import Store

NOTES = 24


class Reader:
    """Somebody at a browser window of their own; what a page complains of, or asks of elsewhere, is kept."""

    def __init__(self, browser: Any, server: Server, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        self.page, self.server = self.context.new_page(), server
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url))
        self.page.on(
            "console", lambda said: self.complaints.append(said.text) if "Failed to load" not in said.text else None
        )

    def _note(self, url: str) -> None:
        if not url.startswith(self.server.url):
            self.complaints.append(f"asked for {url}")

    def go(self, path: str) -> None:
        self.page.goto(f"{self.server.url}/review{path}")

    def press(self, *keys: str) -> None:
        """Press keys, the last of which leads to another page."""
        for key in keys[:-1]:
            self.page.keyboard.press(key)
        with self.page.expect_navigation():
            self.page.keyboard.press(keys[-1])

    def sign_in(self, name: str) -> None:
        self.go("")
        self.page.locator("[name=name]:focus").wait_for()  # it has the focus as soon as the page is there
        self.page.keyboard.type(name)
        self.page.keyboard.press("Tab")
        self.page.keyboard.type(PASSWORD)
        self.press("Enter")
        assert f"{name} ({PEOPLE[name]})" in self.page.inner_text("header"), self.page.inner_text("body")

    def says(self) -> str:
        return " ".join(self.page.locator("[role=alert]").all_inner_texts())

    def accessible(self) -> None:
        """No serious finding of axe on the page."""
        found = Axe().run(self.page).response["violations"]
        serious = [own for own in found if own["impact"] in ("serious", "critical")]
        assert not serious, json.dumps([(own["id"], [n["html"] for n in own["nodes"]]) for own in serious], indent=1)

    def scrolls_sideways(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


@contextlib.contextmanager
def reader(browser: Any, server: Server, name: str, **options: Any) -> Iterator[Reader]:
    own = Reader(browser, server, **options)
    own.sign_in(name)
    yield own
    own.context.close()
    assert own.complaints == []


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    with Store(folder / "s.sqlite") as store:
        for name, role in PEOPLE.items():
            Accounts(store, 60).add(name, role, PASSWORD)
    queue = [json.dumps({"id": f"q{i}", "text": record(i).text}) for i in range(NOTES)]
    (folder / "queue.jsonl").write_text("\n".join(queue))
    return folder / "s.sqlite"


def serving(path: Path, *models: object, **options: object) -> Any:
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    return running(*models, "--review", path, "--queue", path.parent / "queue.jsonl", *given)


def prepared(store: Store, keys: str, count: int) -> None:
    """Wait until models have said so much of the cases whose keys begin so."""
    until = time.monotonic() + 120
    query = "SELECT count(*) AS n FROM predictions p JOIN cases c ON c.id = p.case_id AND c.key LIKE ?"
    while store.rows(query, (f"{keys}%",))[0]["n"] < count:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_from_a_queue_to_a_new_model(browser: Any, path: Path, forks: Forks, tmp_path: Path) -> None:
    with Store(path) as store, serving(path, f"old={triage_bundle()}", reviews_per_case=2) as server:
        prepared(store, "q", NOTES)
        with reader(browser, server, "nina") as nina, reader(browser, server, "olga") as olga:
            nina.accessible()
            nina.press("n")
            nina.accessible()
            first = nina.page.url
            with nina.page.expect_navigation():
                nina.page.get_by_role("button", name=re.compile("The case for")).first.click()
            assert "as the model would write it" in nina.page.inner_text("main")
            nina.accessible()
            # Override with an edit, by keys only.
            nina.page.keyboard.press("3")
            nina.page.keyboard.press("e")
            nina.page.keyboard.press("Control+a")
            nina.page.keyboard.type("Nina says: 1, 2, e, s <b>bold</b> ümlaut.")
            nina.press("Escape", "Enter")
            (kept,) = store.rows("SELECT * FROM answers")
            assert kept["rationale"] == "Nina says: 1, 2, e, s <b>bold</b> ümlaut." and kept["label"] == record(2).label
            assert nina.page.url != first
            nina.press("u")
            assert "taken back" in nina.says() and "<b>bold</b>" in nina.page.input_value("[name=rationale]")
            nina.press("Enter")
            nina.page.keyboard.press("?")
            assert nina.page.locator("#keys").is_visible()
            nina.page.keyboard.press("?")
            nina.press("s")
            nina.press("d")

            for person in (nina, olga):  # both answer all cases, and differ on a few
                while True:
                    person.go("/next")
                    if "Nothing is left" in person.says():
                        break
                    number = int(re.findall(r"q(\d+)", person.page.inner_text("h1"))[0])
                    differs = person is olga and number < 3
                    person.press(str((number + differs) % 3 + 1), "Enter")
            olga.go("/history?action=skip")
            assert "No answers yet" in olga.page.inner_text("main")
        with reader(browser, server, "adam") as adam:
            adam.go("/adjudicate")
            adam.accessible()
            while "No disagreement" not in adam.says():
                number = int(re.findall(r"q(\d+)", adam.page.inner_text("h1"))[0])
                adam.page.locator("input[name=label]").nth(number % 3).check()
                with adam.page.expect_navigation():
                    adam.page.get_by_role("button", name="Save and next").click()
                adam.go("/adjudicate")
            for place in ("/dashboard", "/history", ""):
                adam.go(place)
                adam.accessible()
        states = {row["state"]: row["n"] for row in store.rows("SELECT state, count(*) AS n FROM cases GROUP BY state")}
        assert states["adjudicated"] >= 3 and sum(states.values()) == NOTES

    exported = forks.run("feedback", "export", path, "--out", tmp_path / "feedback", "--split", "0.6,0.2,0.2")
    assert exported.returncode == 0, exported.stderr
    config = tmp_path / "train.toml"
    dataset = DatasetFolder.open(tmp_path / "feedback")
    values = settings(dataset, method="sft", steps=60, learning_rate=5e-3, lengths={"input": 64})
    del values["rationale_source"]
    config.write_text(tomli_w.dumps(values))
    trained = forks.run("train", config, "--out", tmp_path / "new")
    assert trained.returncode == 0, trained.stderr

    with Store(path) as store, serving(path, f"old={triage_bundle()}", f"new={tmp_path / 'new/bundle'}") as server:
        prepared(store, "q", 2 * NOTES)
        with reader(browser, server, "ada") as ada:
            text, until = "", time.monotonic() + 60
            while "new (" not in text and time.monotonic() < until:  # numbers are up to half a minute old
                ada.go("/dashboard")
                text = ada.page.inner_text("main")
                time.sleep(1)
            assert "old (" in text and "new (" in text and "Kappa" in text


def test_blind_mode_and_the_session_that_ends(browser: Any, path: Path) -> None:
    queue = path.parent / "blind.jsonl"
    queue.write_text("\n".join(json.dumps({"id": f"b{i}", "text": f"chest pain number {i}"}) for i in range(3)))
    with (
        Store(path) as store,
        running(triage_bundle(), "--review", path, "--queue", queue, "--blind-share", 1) as server,
        reader(browser, server, "nina") as nina,
    ):
        prepared(store, "b", 3)
        with store.transaction() as database:  # only these are left
            database.execute("DELETE FROM claims")
            database.execute("UPDATE cases SET state = 'reviewed' WHERE key NOT LIKE 'b%'")
        nina.go("/next")
        assert "You decide first" in nina.page.inner_text("main") and "%" not in nina.page.inner_text("main")
        nina.accessible()
        nina.press("1", "Enter")
        assert "You first decided: home care" in nina.page.inner_text("main") and "%" in nina.page.inner_text("main")
        nina.page.keyboard.press("c")
        nina.page.keyboard.type("typed before the session ended")
        with store.transaction() as database:
            database.execute("DELETE FROM sessions")
        nina.press("Escape", "2", "Enter")
        assert "what you typed is kept" in nina.says()
        nina.accessible()
        nina.page.fill("[name=name]", "nina")
        nina.page.fill("[name=password]", PASSWORD)
        with nina.page.expect_navigation():
            nina.page.click("main button")
        assert nina.page.input_value("[name=comment]") == "typed before the session ended"
        nina.press("Enter")
        (kept,) = store.rows("SELECT * FROM answers WHERE blind")
        assert kept["first_label"] == "home care" and kept["comment"] == "typed before the session ended"


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Server]:
    with serving(path, triage_bundle()) as server:
        yield server


@pytest.mark.parametrize(
    "options",
    [
        {"viewport": {"width": 360, "height": 700}},
        {"color_scheme": "dark"},
        {"java_script_enabled": False},
        {"locale": "fr-FR"},
    ],
    ids=["phone", "dark", "no-script", "french"],
)
def test_pages_for_every_reader(options: dict[str, Any], browser: Any, path: Path, server: Server) -> None:
    long = "ألم في الصدر منذ يومين، بلا حمى. " * 60
    with Store(path) as store:
        own = Reader(browser, server, **options)
        own.go("")
        own.page.fill("[name=name]", "ada")
        own.page.fill("[name=password]", PASSWORD)
        own.page.click("main button")
        own.page.fill("[name=text]", f"{long}\n<script>document.title = 'run'</script> Übelkeit")
        own.page.click("form[action$=paste] button")
        note = own.page.locator(".note")
        assert "<script>" in note.inner_text() and own.page.title() != "run"
        if options.get("java_script_enabled", True):
            assert note.evaluate("e => getComputedStyle(e).direction") == "rtl"
            assert not own.scrolls_sideways()
            own.accessible()
            own.page.emulate_media(media="print")
            assert not own.page.locator(".buttons").first.is_visible() and note.is_visible()
            own.page.emulate_media(media="screen")
        own.page.locator("input[name=label]").first.check()
        own.page.locator("button[value=decide]").click()
        own.page.wait_for_load_state()
        last = store.rows("SELECT * FROM answers ORDER BY id DESC LIMIT 1")[0]
        assert last["label"] == "home care" and last["sampled"] == "pasted"
        if "locale" in options:
            assert "Cas suivant" in own.page.inner_text("header")
        assert own.complaints == []
        own.context.close()
