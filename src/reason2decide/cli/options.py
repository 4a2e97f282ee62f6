"""Options made of a settings class, so that their names, types, defaults and help stand once: in the class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_origin, get_type_hints

import typer

LIMITS = ("min", "max", "metavar")


def with_options(parameter: str, settings: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command that has an option for each field of a settings class and gets them together as one parameter.

    A field is an option if its type is annotated with a `typer.Option`, or if its metadata have a `help`: then `flag`,
    `min`, `max` and `metavar` may stand beside it. Other fields keep their defaults.

    Example:
        @with_options("settings", Settings)
        def evaluate_command(bundle: Path, settings: Settings) -> None: ...
    """
    hints = get_type_hints(settings, include_extras=True)
    options = [option for own in fields(settings) if (option := _option(own, hints[own.name])) is not None]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        kept = [own.replace(kind=own.KEYWORD_ONLY) for name, own in signature.parameters.items() if name != parameter]

        def gathered(**values: Any) -> None:
            given = {option.name: values.pop(option.name) for option in options}
            # Click gives an option that may be repeated as a list, a frozen class wants a tuple.
            plain = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
            command(**values, **{parameter: settings(**plain)})

        gathered.__doc__ = command.__doc__
        gathered.__annotations__ = {own.name: own.annotation for own in (*kept, *options)}
        gathered.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
        return gathered

    return decorate


def _option(own: Field[Any], hint: Any) -> inspect.Parameter | None:
    default: Any = inspect.Parameter.empty if own.default is MISSING else own.default
    if get_origin(hint) is not Annotated:
        if "help" not in own.metadata:
            return None
        limits = {name: own.metadata[name] for name in LIMITS if name in own.metadata}
        flag = own.metadata.get("flag", f"--{own.name.replace('_', '-')}")
        if hint == tuple[str, ...]:
            hint, default = list[str], list(default)
        hint = Annotated[hint, typer.Option(flag, help=own.metadata["help"], **limits)]
    return inspect.Parameter(own.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
