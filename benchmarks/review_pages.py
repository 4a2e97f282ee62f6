"""How fast the review pages answer, with many stored cases and many reviewers at once.

    python benchmarks/review_pages.py --cases 100000 --reviewers 20 --requests 40

A server process of a small export or bundle (trained here for seconds if none is given), a store of that many decided
cases with an answer to each tenth, and reviewers who each take the next case, look at it, answer it, and look at their
history. Prints median and 95th percentile of each kind of page; no page here asks the model for anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import aiohttp

from reason2decide.review.accounts import Accounts
from reason2decide.review.answers import GivenAnswer, keep
from reason2decide.review.queueing import add_cases
from reason2decide.review.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

PAUSE = 0.25  # seconds between two pages of a reviewer: the fastest that the pages allow
PASSWORD = "a long enough password"
NOTE = "34 yo with chest pain since {} days. Denies fever, no rash. Takes insulin. Call number {}. "


def fill(path: Path, cases: int, reviewers: int, labels: tuple[str, ...], model_hash: str) -> None:
    """A store of decided cases, a tenth of them answered."""
    with Store(path) as store:
        accounts = Accounts(store, 60)
        for number in range(reviewers):
            accounts.add(f"reviewer {number}", "reviewer", PASSWORD)
        for begin in range(0, cases, 5000):
            part = [(f"case {i}", 8 * NOTE.format(i % 30, i)) for i in range(begin, min(cases, begin + 5000))]
            add_cases(store, part, source="queue", wanted=1)
        rows = []
        for i in range(cases):
            label, confidence = labels[i % len(labels)], 0.4 + 0.59 * (i * 7919 % cases) / cases
            rest = (1 - confidence) / (len(labels) - 1)
            probabilities = json.dumps({own: confidence if own == label else rest for own in labels})
            rows.append((i + 1, model_hash, label, probabilities, json.dumps([label])))
        with store.transaction() as database:
            database.executemany(
                "INSERT INTO predictions (case_id, model, model_hash, at, label, probabilities, prediction_set, "
                "deferred, tokens, tokens_read, rationale, supports) VALUES "
                "(?, 'triage', ?, '2026-01-01T00:00:00.000Z', ?, ?, ?, 0, 9, 9, 'Chest pain decides.', 1)",
                rows,
            )
            database.execute(
                "UPDATE cases SET state = 'open', confidence = 0.4 + 0.59 * (id * 7919 % :n) / :n, "
                "unsupported = id % 9 = 0, urgency = -(id % 3)",
                {"n": float(cases)},
            )
        for case_id in range(1, cases + 1, 10):
            person = 1 + case_id % reviewers
            values = ("accept", labels[0], "Chest pain decides.", False, "", "", False, None, None, "random", 0.3, "")
            keep(store, GivenAnswer(f"key {case_id}", case_id, person, case_id, "review", *values))


async def review(url: str, number: int, requests: int, times: dict[str, list[float]]) -> None:
    """One reviewer at work."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:

        async def page(kind: str, method: str, path: str, data: dict[str, str] | None = None) -> tuple[str, str]:
            began = time.perf_counter()
            async with client.request(method, url + path, data=data, allow_redirects=False) as reply:
                text, moved = await reply.text(), reply.headers.get("location", "")
                assert reply.status in (200, 303), (reply.status, text[-400:])
            times[kind].append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(PAUSE)
            return text, moved

        await page("sign in", "POST", "/review/sign-in", {"name": f"reviewer {number}", "password": PASSWORD, "to": ""})
        for turn in range(requests):
            _, case = await page("take the next case", "GET", "/review/next")
            text, _ = await page("see a case", "GET", case)
            fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', text))
            label = re.findall(r'type="radio" name="label" value="([^"]*)"', text)[0]
            await page("answer", "POST", case, fields | {"action": "decide", "label": label, "rationale": "changed"})
            if turn % 10 == 9:
                await page("history", "GET", "/review/history")
                await page("dashboard", "GET", "/review/dashboard")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="bundle or export; default: a toy model, trained for seconds")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--reviewers", type=int, default=20)
    parser.add_argument("--requests", type=int, default=40, help="cases that each reviewer answers")
    given = parser.parse_args()

    from serving import running, triage_bundle

    from reason2decide.serve.served_model import ServedModel

    bundle = given.model or triage_bundle()
    model = ServedModel("triage", bundle)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.sqlite"
        fill(path, given.cases, given.reviewers, model.labels.values, model.hash)
        print(f"{given.cases} cases, {path.stat().st_size / 2**20:.0f} MiB; {given.reviewers} reviewers at once")
        times: dict[str, list[float]] = defaultdict(list)
        with running(f"triage={bundle}", "--review", path) as server:

            async def everybody() -> None:
                people = (review(server.url, i, given.requests, times) for i in range(given.reviewers))
                await asyncio.gather(*people)

            began = time.perf_counter()
            asyncio.run(everybody())
            seconds = time.perf_counter() - began
    for kind, own in times.items():
        p95, middle = statistics.quantiles(own, n=20)[-1], statistics.median(own)
        print(f"{kind}: median {middle:.0f} ms, p95 {p95:.0f}, most {max(own):.0f}, {len(own)} pages")
    print(f"{sum(map(len, times.values())) / seconds:.0f} pages a second")


if __name__ == "__main__":
    main()
