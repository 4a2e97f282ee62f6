"""Render templates to pages: escaped, with a policy that blocks external content and allows one script, by its hash."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import jinja2
from markupsafe import Markup

from reason2decide.syntax import storable
from reason2decide.version import __version__


def render_page(template: str, /, *, script: str | None = None, **values: Any) -> str:
    """The template filled with the escaped values; `script` names a file next to it.

    The page contains its style and script, and its content security policy allows nothing else.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__.rpartition(".")[0]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    code = "\n" + _source(environment, script) if script else ""
    html = environment.get_template(template).render(
        script=Markup(code),
        script_hash=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
        version=__version__,
        **values,
    )
    return storable(html)


def _source(environment: jinja2.Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]
