"""Open the store and the queue for a server, before it answers anybody."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from reason2decide.console import say, warn
from reason2decide.data.cases import MADE, Cases
from reason2decide.data.recipe import InputRecipe, listed
from reason2decide.data.records import LabelSet
from reason2decide.errors import ConfigError
from reason2decide.review.accounts import Accounts
from reason2decide.review.pages import ReviewPages
from reason2decide.review.queueing import QUEUE, NewCase, add_cases, keys_of_other_texts, read_again
from reason2decide.review.settings import ReviewSettings
from reason2decide.review.store import Store
from reason2decide.serve.served_model import ServedModel

SHOWN_BAD_ROWS = 10  # ours: of a queue file
ROWS_TOGETHER = 1000  # ours: cases of one transaction


def open_review(settings: ReviewSettings, models: Sequence[ServedModel]) -> ReviewPages | None:
    """The review pages that settings ask for, with the queue loaded; None if they ask for none.

    Raises:
        StoreError: the file is no store of reviews.
        ConfigError: the store has answers about other labels, or nobody could sign in.
        DataError: the queue file cannot be read at all.
        MissingExtraError: argon2-cffi is not installed.
    """
    if settings.review is None:
        return None
    store = Store(settings.review)
    try:
        require_labels(store, models[0].labels)
        keep_recipe(store, models[0].recipe)
        keep_model(store, models[0].hash)
        read_again(store)
        if settings.reviewer_header is None and not Accounts(store, 0).all():
            raise ConfigError(
                f"{settings.review} has no reviewers; add one with `r2d feedback add-reviewer {settings.review} NAME`, "
                "or let a proxy name them (--reviewer-header)"
            )
        if settings.queue is not None:
            load_queue(store, settings.queue, models[0], settings.reviews_per_case)
        for model in models[1:]:
            if model.labels != models[0].labels:
                warn(f"{model.name} has other labels than {models[0].name}, so it is not compared on reviewed cases")
        return ReviewPages(store, settings, models)
    except BaseException:
        store.close()
        raise


def require_labels(store: Store, labels: LabelSet) -> None:
    """Note the labels that a store's answers are about, or refuse others.

    Raises:
        ConfigError: the store is about other labels.
    """
    own = {"values": list(labels.values), "ordinal": labels.ordinal, "urgent": labels.urgent}
    found = store.row("SELECT value FROM facts WHERE key = 'labels'")
    if found is None:
        with store.transaction() as database:
            database.execute("INSERT INTO facts VALUES ('labels', ?)", (json.dumps(own, ensure_ascii=False),))
    elif json.loads(found["value"]) != own:
        before = "; ".join(json.loads(found["value"])["values"])
        raise ConfigError(
            f"the answers in {store.path} are about the labels {before}, and this model has "
            f"{'; '.join(labels.values)}, or another order: export them with `r2d feedback export`, and give another "
            "file to --review"
        )


def labels_of(store: Store) -> LabelSet:
    """The labels that a store's answers are about.

    Raises:
        ConfigError: no server has opened it yet.
    """
    found = store.row("SELECT value FROM facts WHERE key = 'labels'")
    if found is None:
        raise ConfigError(f"{store.path} has no answers yet: serve a model with --review {store.path}")
    own = json.loads(found["value"])
    return LabelSet(tuple(own["values"]), own["ordinal"], own["urgent"])


def keep_recipe(store: Store, recipe: InputRecipe | None) -> None:
    """Note how the texts of a store are made, so that a model that is trained on them makes its texts alike."""
    content = {} if recipe is None else recipe.to_json()
    with store.transaction() as database:
        database.execute(
            "INSERT OR REPLACE INTO facts VALUES ('recipe', ?)", (json.dumps(content, ensure_ascii=False),)
        )


def recipe_of(store: Store) -> InputRecipe:
    """How the texts of a store are made; of notes as they are: of the column `text`."""
    found = store.row("SELECT value FROM facts WHERE key = 'recipe'")
    content = json.loads(found["value"]) if found else {}
    return InputRecipe.from_json(content) if content else InputRecipe(text=(MADE,))


def keep_model(store: Store, model_hash: str) -> None:
    """Note whose decisions are reviewed now."""
    with store.transaction() as database:
        database.execute("INSERT OR REPLACE INTO facts VALUES ('model', ?)", (model_hash,))


def reviewed_model(store: Store) -> str | None:
    """The hash of the model whose decisions are reviewed, None before a server has opened the store."""
    found = store.row("SELECT value FROM facts WHERE key = 'model'")
    return None if found is None else str(found["value"])


def load_queue(store: Store, path: Path, model: ServedModel, wanted: int) -> None:
    """Add the cases of a file that are not there yet; rows that are no cases are told, and the rest is loaded.

    Raises:
        DataError: the file cannot be read at all.
    """
    bad: list[Exception] = []
    records = Cases(path, model.recipe).records(bad.append, by_text=True)
    new = total = 0
    taken: list[str] = []  # ids of other notes
    cases = (NewCase(record.id, record.text, record.group) for record in records)
    while part := list(islice(cases, ROWS_TOGETHER)):
        taken += keys_of_other_texts(store, part)
        new += add_cases(store, part, source=QUEUE, wanted=wanted)
        total += len(part)
    for error in bad[:SHOWN_BAD_ROWS]:
        warn(f"left out of the queue: {error}")
    if len(bad) > SHOWN_BAD_ROWS:
        warn(f"and {len(bad) - SHOWN_BAD_ROWS} more rows")
    if taken:
        warn(
            f"{len(taken)} rows of the queue have the id of a case with another text ({listed(taken[:5])}) and are "
            "left out; give each note an id of its own"
        )
    say(f"queue: {new} new cases of {total} in {path}" + (f", {len(bad)} rows left out" if bad else ""))
