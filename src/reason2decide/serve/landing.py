"""The page at `/`: what is served, how to call it, and a form to try it."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from reason2decide.data.cases import described
from reason2decide.serve.served_model import ServedModel
from reason2decide.version import __version__

if TYPE_CHECKING:
    from reason2decide.serve.auth import Authenticator
    from reason2decide.serve.extension import Extension

NOTE = "45 yo with chest pain for one hour, sweating."
LINKS = {
    "/v1/models": "the models",
    "/openapi.json": "every endpoint with its fields (OpenAPI)",
    "/cds-services": "CDS Hooks services",
    "/health/ready": "readiness",
    "/metrics": "metrics",
}
_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("reason2decide.serve"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Shown:
    """A model as the page shows it: with a request that works, and the commands that send it."""

    name: str
    description: str
    labels: tuple[str, ...]
    order: str
    text: str
    columns: tuple[str, ...]
    body: str
    curl: str
    python: str


def landing_routes(
    models: Sequence[ServedModel], authenticator: Authenticator | None, extension: Extension | None = None
) -> APIRouter:
    """The page. Where callers need a token, it shows nothing of the models."""
    links = LINKS if extension is None else {extension.prefix: "pages to review decisions on", **LINKS}
    api = APIRouter()

    @api.get("/", include_in_schema=False)
    async def landing(request: Request) -> HTMLResponse:
        address = str(request.base_url).rstrip("/")
        return HTMLResponse(landing_page(models, address, links, open=authenticator is None))

    return api


def landing_page(models: Sequence[ServedModel], address: str, links: Mapping[str, str] = LINKS, *, open: bool) -> str:
    """The page as HTML, which loads nothing and runs one script, known by its hash."""
    script = "\n" + _source("landing.js")
    return _PAGES.get_template("landing.html").render(
        models=[shown(model, address) for model in models] if open else [],
        open=open,
        links=links,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
    )


def shown(model: ServedModel, address: str) -> Shown:
    """A model for the page of a server at this address."""
    body, url = example_body(model), f"{address}/v1/systemone"
    columns = () if model.reads_notes or model.recipe is None else model.recipe.text
    urgent = {"first": "most urgent first", "last": "most urgent last", None: "in order"}[model.labels.urgent]
    return Shown(
        model.name,
        model.description,
        model.labels.values,
        urgent if model.labels.ordinal else "in no order",
        described(model.recipe) if columns else "a note is the text",
        columns,
        json.dumps(body, ensure_ascii=False),
        f"curl {url} -H 'content-type: application/json' -d {shlex.quote(json.dumps(body, indent=1))}",
        PYTHON.format(body=body, url=url),
    )


def example_body(model: ServedModel) -> dict[str, Any]:
    """A request that this model answers: which of its labels, why, and whether a person should decide."""
    state: str | Mapping[str, str] = NOTE
    if not model.reads_notes and model.recipe is not None:
        state = dict.fromkeys(model.recipe.text, "...")
    question = {"type": "choice", "criteria": dict.fromkeys(model.labels.values)}
    reasons = ["rationale"] if model.explains else []
    return {
        "model": model.name,
        "state": state,
        "questions": {"decision": question},
        "include": [*reasons, "prediction_set", "deferral"],
    }


PYTHON = """\
import json, urllib.request

body = {body!r}
headers = {{"content-type": "application/json"}}
request = urllib.request.Request({url!r}, json.dumps(body).encode(), headers)
answer = json.load(urllib.request.urlopen(request))["answers"]["decision"]
print(answer["choice"], answer["probabilities"], answer.get("rationale"))"""


def _source(name: str) -> str:
    assert _PAGES.loader is not None
    return _PAGES.loader.get_source(_PAGES, name)[0]
