"""`r2d serve` and `serve-token`."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer

from reason2decide.errors import ConfigError, require


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command("serve")(serve_command)
    app.command("serve-token")(token_command)


def serve_command(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Bundles or exports: PATH or NAME=PATH.")],
    name: Annotated[
        list[str] | None, typer.Option(help="Name of a model, in their order; default: that of its folder or run.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; any but loopback needs tokens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    public_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where callers reach the server, as JSON web tokens name it.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Lines that `r2d serve-token` printed: who may call.")
    ] = None,
    jwt_issuers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML of issuers of JSON web tokens and their key files.")
    ] = None,
    audit: Annotated[Path | None, typer.Option(metavar="FILE", help="SQLite record of every decision.")] = None,
    retention_days: Annotated[int, typer.Option(min=1, help="Days that its rows are kept.")] = 365,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests under way; further ones get 503.")] = 256,
    deadline_ms: Annotated[int, typer.Option(min=1, help="A request not answered by then gets 504.")] = 10_000,
    cors: Annotated[list[str] | None, typer.Option(metavar="ORIGIN", help="A web page that may call.")] = None,
    source_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Page about the model, to which CDS cards link.")
    ] = None,
    error_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Wanted among decisions that are not deferred to a person.")
    ] = 0.1,
    miscoverage: Annotated[float, typer.Option(min=0, max=1, help="Allowed to prediction sets.")] = 0.1,
) -> None:
    """Serve models: decisions, rationales and CDS Hooks over HTTP, until Ctrl-C or SIGTERM."""
    for module in ("fastapi", "uvicorn", "httptools", "prometheus_client"):
        require(module, "serve")
    from reason2decide.serve.running import serve
    from reason2decide.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        public_url=public_url,
        tokens=tokens,
        jwt_issuers=jwt_issuers,
        audit=audit,
        retention_days=retention_days,
        max_queue=max_queue,
        deadline_ms=deadline_ms,
        cors_origins=tuple(cors or ()),
        source_url=source_url,
    )
    serve(named_models(models, name or []), settings, error_rate=error_rate, miscoverage=miscoverage)


def token_command(name: Annotated[str, typer.Argument(help="Of the caller, as the audit record names it.")]) -> None:
    """Make a bearer token for a caller, and the line for the file of `r2d serve --tokens`."""
    from reason2decide.serve.auth import new_token

    token, line = new_token(name)
    typer.echo(f"token, for the caller only:  {token}")
    typer.echo(f"line, for the file of tokens: {line}")


def named_models(models: list[str], names: list[str]) -> list[tuple[str, Path]]:
    """The name and path of each model: NAME=PATH, a name given apart, or that of its folder (of RUN/bundle: RUN).

    Raises:
        ConfigError: more names than models, or two models of one name.
    """
    if len(names) > len(models):
        raise ConfigError(f"{len(names)} names were given for {len(models)} models; give at most one --name a MODEL")
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
        raise ConfigError(f"two models are named {repeated[0]!r}; give each a name of its own, as in NAME=PATH")
    if not all(given):
        raise ConfigError("a model has an empty name; give it one, as in NAME=PATH")
    return found
