"""Review pages of a toy model, for tests: a store, reviewers, and clients that are signed in."""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from httpx2 import Response
from serving import triage_bundle

from reason2decide.data.recipe import InputRecipe
from reason2decide.review.accounts import Accounts
from reason2decide.review.opening import open_review
from reason2decide.review.pages import ReviewPages
from reason2decide.review.queueing import NewCase, add_cases, keep_prediction
from reason2decide.review.settings import ReviewSettings
from reason2decide.review.store import Store
from reason2decide.serve.app import create_app
from reason2decide.serve.served_model import ServedModel
from reason2decide.serve.settings import ServeSettings

PASSWORD = "a long enough password"
NOTES = [
    ("n1", "40 yo with chest pain since 2 days"),
    ("n2", "Kind, 3 Jahre, hustet seit gestern; Übelkeit. Fièvre à 39°"),
    ("n3", "<script>alert('note')</script> & <b>\"bold\"</b> chest pain"),
    ("n4", "ألم في الصدر منذ يومين"),
]
PEOPLE = {"nina": "reviewer", "olga": "reviewer", "nora": "reviewer", "adam": "adjudicator", "ada": "administrator"}


class Site:
    """The pages of one store."""

    def __init__(
        self, path: Path, *, recipe: InputRecipe | None = None, beside: Sequence[ServedModel] = (), **options: Any
    ) -> None:
        self.path = path
        with Store(path) as store:
            for name, role in PEOPLE.items():
                if Accounts(store, 60).named(name) is None:
                    Accounts(store, 60).add(name, role, PASSWORD)
        self.model = ServedModel("triage", triage_bundle())
        self.model.recipe = recipe
        pages = open_review(ReviewSettings(review=path, **options), [self.model, *beside])
        assert isinstance(pages, ReviewPages)
        self.pages = pages
        self.app = create_app([self.model, *beside], ServeSettings(), extension=pages)

    @property
    def store(self) -> Store:
        return self.pages.store

    def decide(self) -> None:
        """Let the model decide on all cases now, as the server does in the background."""
        for case in self.store.rows("SELECT id, text FROM cases WHERE state = 'waiting'"):
            (decision,) = self.model.decide([case["text"]])
            assert not isinstance(decision, Exception)
            (reason,) = self.model.explain([case["text"]], [decision.label])
            hashed = self.model.hash
            keep_prediction(self.store, case["id"], "triage", hashed, decision, reason, self.model.labels, shown=True)

    def answers(self, where: str = "1") -> list[dict[str, Any]]:
        """The answers in the store."""
        return self.store.rows(f"SELECT a.*, r.name FROM answers a JOIN reviewers r ON r.id = a.reviewer WHERE {where}")


class Person:
    """Somebody at a browser."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def get(self, path: str = "", **values: Any) -> Response:
        return self.client.get(f"/review{path}", **values)

    def post(self, path: str, fields: dict[str, str], **values: Any) -> Response:
        return self.client.post(f"/review{path}", data=fields, **values)

    def answer(self, page: Response, **fields: str) -> Response:
        """Fill in the form of a case's page, and send it."""
        return self.post(page.url.path.removeprefix("/review"), form_fields(page) | fields)


def filled(folder: Path, **options: Any) -> Site:
    """A site with four decided cases in its queue."""
    site = Site(folder / "s.sqlite", **options)
    add_cases(site.store, [NewCase(*note) for note in NOTES], source="queue", wanted=options.get("reviews_per_case", 1))
    site.decide()
    return site


def form_csrf(text: str) -> str:
    """The secret that the forms of a page show."""
    found = re.search(r'name="csrf" value="([^"]+)"', text)
    assert found is not None
    return found[1]


def form_fields(page: Response) -> dict[str, str]:
    """What the form of a case's page holds."""
    form = next(part for part in page.text.split("<form")[1:] if "/case/" in part.split(">")[0])
    found = dict(re.findall(r'<input type="(?:hidden|text)" name="(\w+)" value="([^"]*)"', form))
    found |= dict(re.findall(r'<textarea name="(\w+)"[^>]*>(.*?)</textarea>', form, re.DOTALL))
    found |= dict(re.findall(r'type="radio" name="(label)" value="([^"]*)" checked', form))
    return {name: html.unescape(value) for name, value in found.items()}


def sign_in(client: TestClient, name: str, password: str = PASSWORD) -> Response:
    """Sign in; the client keeps the session."""
    return client.post("/review/sign-in", data={"name": name, "password": password, "to": "/review"})


@contextlib.contextmanager
def people(site: Site, *names: str) -> Iterator[list[Person]]:
    """People at the same pages, each with a browser of their own, signed in."""
    with TestClient(site.app, base_url="http://localhost") as first:
        clients = [first, *(TestClient(site.app, base_url="http://localhost") for _ in names[1:])]
        for client, name in zip(clients, names, strict=True):
            assert sign_in(client, name).status_code == 200
        yield [Person(client) for client in clients]


def message(page: Response) -> str:
    """What a page says of what was done or not."""
    return html.unescape(" ".join(re.findall(r'role="alert">(.*?)</p>', page.text, re.DOTALL)))


def decided(site: Site, case_id: int) -> str:
    """What a model has decided on a case."""
    return str(site.store.rows("SELECT label FROM predictions WHERE case_id = ?", (case_id,))[0]["label"])
