"""Options made from a settings class, so that names, types, defaults and help are written once, in the class."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_origin, get_type_hints

import typer

LIMITS = ("min", "max", "metavar")


def with_options(parameter: str, settings: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of a settings class; it gets them together as one parameter.

    A field is an option if its type is annotated with a `typer.Option`, or if its metadata have a `help`; they may also
    have `flag`, `min`, `max` and `metavar`. Other fields keep their defaults.

    Example:
        @with_options("settings", Settings)
        def evaluate_command(bundle: Path, settings: Settings) -> None: ...
    """
    hints = get_type_hints(settings, include_extras=True)
    options = [option for field in fields(settings) if (option := _option(field, hints[field.name])) is not None]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        kept = [p.replace(kind=p.KEYWORD_ONLY) for name, p in signature.parameters.items() if name != parameter]

        def gathered(**values: Any) -> None:
            given = {option.name: values.pop(option.name) for option in options}
            # Click passes a repeatable option as a list; a frozen class needs a tuple.
            plain = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
            command(**values, **{parameter: settings(**plain)})

        gathered.__doc__ = command.__doc__
        gathered.__annotations__ = {p.name: p.annotation for p in (*kept, *options)}
        gathered.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
        return gathered

    return decorate


def comma_separated(text: str | None) -> tuple[str, ...]:
    """The parts of an option's value; quotes protect a comma inside a part."""
    return tuple(part.strip() for part in next(csv.reader([text], skipinitialspace=True))) if text else ()


def _option(field: Field[Any], hint: Any) -> inspect.Parameter | None:
    default: Any = inspect.Parameter.empty if field.default is MISSING else field.default
    if get_origin(hint) is not Annotated:
        if "help" not in field.metadata:
            return None
        limits = {name: field.metadata[name] for name in LIMITS if name in field.metadata}
        flag = field.metadata.get("flag", f"--{field.name.replace('_', '-')}")
        if hint == tuple[str, ...]:
            hint, default = list[str], list(default)
        hint = Annotated[hint, typer.Option(flag, help=field.metadata["help"], **limits)]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
