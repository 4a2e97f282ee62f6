"""`r2d serve` and `serve-token`."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer

from reason2decide.cli.options import with_options
from reason2decide.errors import ConfigError, require
from reason2decide.review.settings import ReviewSettings
from reason2decide.serve.settings import ServeSettings


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command("serve")(serve_command)
    app.command("serve-token")(token_command)


@with_options("review", ReviewSettings)
@with_options("settings", ServeSettings)
def serve_command(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Bundles or exports: PATH or NAME=PATH.")],
    settings: ServeSettings,
    review: ReviewSettings,
    name: Annotated[
        list[str] | None, typer.Option(help="Name of each model, in order; default: that of its folder or run.")
    ] = None,
) -> None:
    """Serve models: decisions, rationales, CDS Hooks and review pages over HTTP, until Ctrl-C or SIGTERM."""
    if settings.audit is None and settings.retention_days != ServeSettings.retention_days:
        raise ConfigError("--retention-days needs --audit FILE, the record whose rows are kept so long")
    given = [own.name for own in fields(ReviewSettings) if getattr(review, own.name) != own.default]
    if review.review is None and given:
        named = ", ".join(f"--{option.replace('_', '-')}" for option in given)
        raise ConfigError(f"{named}: pages for reviewers need --review FILE, where the answers are kept")
    for module in ("fastapi", "uvicorn", "httptools", "prometheus_client"):
        require(module, "serve")
    if review.review is not None:
        require("argon2", "review", "--review")
    from reason2decide.review.opening import open_review
    from reason2decide.serve.running import serve

    serve(named_models(models, name or []), settings, partial(open_review, review))


def token_command(name: Annotated[str, typer.Argument(help="Name of the caller in the audit record.")]) -> None:
    """Make a bearer token for a caller, and its line for the file of `r2d serve --tokens`."""
    from reason2decide.serve.auth import new_token

    token, line = new_token(name)
    typer.echo(f"token, for the caller only:  {token}")
    typer.echo(f"line, for the file of tokens: {line}")


def named_models(models: list[str], names: list[str]) -> list[tuple[str, Path]]:
    """The name and path of each model: NAME=PATH, a name from --name, or that of its folder (for RUN/bundle: RUN).

    Raises:
        ConfigError: more names than models, or two models of one name.
    """
    if len(names) > len(models):
        raise ConfigError(f"{len(names)} names were given for {len(models)} models; give at most one --name per MODEL")
    found = []
    for model, name in zip_longest(models, names):
        before, equals, path = model.partition("=")
        if name is None and equals and not Path(model).exists():
            found.append((before, Path(path)))
        else:
            folder = Path(model).resolve()
            found.append((name or (folder.parent if folder.name == "bundle" else folder).name, Path(model)))
    given = [name for name, _ in found]
    repeated = sorted({name for name in given if given.count(name) > 1})
    if repeated:
        raise ConfigError(f"two models are named {repeated[0]!r}; give each its own name, as in NAME=PATH")
    if not all(given):
        raise ConfigError("a model has an empty name; give it one, as in NAME=PATH")
    return found
