"""The first minutes with a server: the page at `/`, and the examples of page and docs, run as printed."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from toy import settings

from reason2decide.data.recipe import InputRecipe
from reason2decide.data.sources.synthetic_calls import synthesize_calls
from reason2decide.serve.app import create_app
from reason2decide.serve.landing import landing_page
from reason2decide.serve.running import bind
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings
from reason2decide.training.config_file import parse_config
from reason2decide.training.run import train

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A model of synthetic calls, of a few steps."""
    folder = tmp_path_factory.mktemp("first")
    calls = synthesize_calls(folder / "calls", train=40, validation=10, test=10)
    return ServedModel("triage", train(parse_config(settings(calls), "test"), folder / "run"))


@pytest.fixture(scope="module")
def address(model: ServedModel) -> Iterator[str]:
    """A real server on a free port."""
    chosen = ServeSettings(port=0)
    listening = bind(chosen)
    server = uvicorn.Server(uvicorn.Config(create_app([model], chosen), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def printed(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_examples_of_the_docs_run_as_printed(address: str) -> None:
    page = (DOCS / "serving.md").read_text("utf-8").replace("http://127.0.0.1:8080", address)
    (curl,), (python,) = printed(page, "bash"), printed(page, "python")
    answered = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
    assert '"rationale"' in answered and '"deferred"' in answered and '"probabilities"' in answered
    explained = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True)
    assert explained.returncode == 0, explained.stderr


def test_the_examples_of_the_page_run_as_printed(address: str) -> None:
    import html

    page = urllib.request.urlopen(f"{address}/").read().decode()
    assert "triage" in page and "call an ambulance" in page and "/openapi.json" in page
    curl = html.unescape(re.findall(r'<pre class="curl">(.*?)</pre>', page, re.DOTALL)[0])
    python = html.unescape(re.findall(r'<pre class="python">(.*?)</pre>', page, re.DOTALL)[0])
    answered = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
    assert '"choice"' in answered and '"rationale"' in answered
    said = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True)
    assert said.returncode == 0 and "home care" in said.stdout, said.stderr


def test_links_of_the_page_lead_somewhere(address: str) -> None:
    page = urllib.request.urlopen(f"{address}/").read().decode()
    for path in re.findall(r'href="(/[^"]*)"', page):
        assert urllib.request.urlopen(address + path).status == 200, path


def test_the_form_decides_in_a_browser(address: str, browser: Any) -> None:
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}/")
    page.get_by_label("Text").fill("45 yo with chest pain <b>now</b>")
    page.get_by_role("button", name="Decide").click()
    page.locator("output table tr").nth(4).wait_for()
    total = sum(float(text.split()[0]) for text in page.locator("output td:nth-child(2)").all_inner_texts())
    assert total == pytest.approx(100, abs=0.4) and problems == []
    page.get_by_label("Text").fill(" ")
    page.get_by_role("button", name="Decide").click()
    assert "no text" in page.locator("output .warn").inner_text()


def test_columns_have_a_field_each(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "recipe", InputRecipe(text=("Sex", "Complaint <i>")))
    page = landing_page([model], "http://x", open=True)
    assert '<input name="Sex"' in page and "<i>" not in page and "Complaint &lt;i&gt;" in page
    assert "&#34;Sex&#34;: &#34;...&#34;" in page  # the example sends an object of columns


def test_a_page_for_callers_with_tokens_tells_nothing_of_the_models(model: ServedModel) -> None:
    page = landing_page([model], "http://x", open=False)
    assert "Bearer TOKEN" in page and "triage" not in page and "ambulance" not in page


def test_explain_takes_a_state_or_a_text_and_not_both(model: ServedModel) -> None:
    with TestClient(create_app([model], ServeSettings()), base_url="http://localhost") as client:
        base = {"model": "triage", "stream": False, "label": "home care"}
        replies = [client.post("/v1/explain", json=base | {key: "chest pain"}) for key in ("state", "text")]
        assert replies[0].json() == replies[1].json() and replies[0].status_code == 200
        for wrong in ({}, {"state": "a", "text": "a"}):
            assert client.post("/v1/explain", json=base | wrong).status_code == 422
