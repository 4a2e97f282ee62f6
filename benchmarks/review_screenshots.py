"""The pictures of docs/review.md: two reviewers and an adjudicator answer the queue of a model, and pages are drawn.

python benchmarks/review_screenshots.py RUN/bundle queue.jsonl docs/
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from reason2decide.review.accounts import Accounts
from reason2decide.review.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

PASSWORD = "a long enough password"
PEOPLE = {"nina": "reviewer", "olga": "reviewer", "adam": "adjudicator"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("queue", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    from serving import running

    chance, browser_path = random.Random(0), shutil.which("chromium") or shutil.which("google-chrome")
    cases = sum(1 for line in given.queue.read_text("utf-8").splitlines() if line.strip())
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        path = Path(folder) / "reviews.sqlite"
        with Store(path) as store:
            for name, role in PEOPLE.items():
                Accounts(store, 60).add(name, role, PASSWORD)
        options = ("--review", path, "--queue", given.queue, "--reviews-per-case", 2, "--blind-share", 0.3)
        with Store(path) as store, running(f"triage={given.model}", *options) as server:
            while store.rows("SELECT count(*) AS n FROM predictions")[0]["n"] < cases:
                time.sleep(0.2)
            browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            for name in PEOPLE:
                page = browser.new_context(viewport={"width": 1180, "height": 860}).new_page()
                page.goto(f"{server.url}/review")
                page.screenshot(path=given.out / "review-sign-in.png")
                page.fill("[name=name]", name)
                page.fill("[name=password]", PASSWORD)
                page.click("main button")
                while True:
                    page.goto(f"{server.url}/review/{'adjudicate' if name == 'adam' else 'next'}")
                    if "/case/" not in page.url:
                        break
                    if page.locator("button[value=first]").count():
                        page.screenshot(path=given.out / "review-blind.png")
                        page.locator("input[name=label]").nth(chance.randrange(5)).check()
                        page.click("button[value=first]")
                    model = page.locator("label.choice", has_text="model's decision").locator("input")
                    agrees = chance.random() < 0.7
                    choice = model if agrees else page.locator("input[name=label]").nth(chance.randrange(5))
                    choice.check()
                    if not agrees:
                        page.fill("[name=reason]", chance.choice(("red flag", "known patient", "would wait")))
                    if name == "nina" and re.search("denied|denies|no ", page.inner_text(".note")):
                        page.locator("button[name=why]").nth(1).click()
                        page.screenshot(path=given.out / "review-case.png", full_page=True)
                    if name == "adam":
                        page.screenshot(path=given.out / "review-disagreement.png", full_page=True)
                    page.click("button[value=decide]")
                if name == "olga":
                    for place, file in (("", "start"), ("/history", "history")):
                        page.goto(f"{server.url}/review{place}")
                        page.screenshot(path=given.out / f"review-{file}.png")
                if name == "adam":
                    time.sleep(31)  # until the numbers are counted anew
                    page.goto(f"{server.url}/review/dashboard")
                    time.sleep(2)
                    page.reload()
                    page.screenshot(path=given.out / "review-dashboard.png", full_page=True)
            browser.close()


if __name__ == "__main__":
    main()
