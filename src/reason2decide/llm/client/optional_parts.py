"""Ask for what makes answers better only where the server takes it: many refuse or ignore a part of the protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Body = dict[str, Any]

REFUSALS = frozenset({400, 404, 422, 500, 501})  # how servers refuse a field they do not know or cannot serve


def _without(*names: str) -> Callable[[Body], Body]:
    return lambda body: {name: value for name, value in body.items() if name not in names}


def _without_lengths(body: Body) -> Body:
    form = body.get("response_format")
    return body if form is None else {**body, "response_format": _unlimited(form)}


def _unlimited(node: Any) -> Any:
    if isinstance(node, list):
        return [_unlimited(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: _unlimited(value) for key, value in node.items() if key != "maxLength"}


# The parts that a request can do without, each with how it is left out; the first are the likeliest to be refused.
PARTS: Mapping[str, Callable[[Body], Body]] = {
    "maxLength": _without_lengths,
    "response_format": _without("response_format"),
    "logprobs": _without("logprobs", "top_logprobs"),
    "stream_options": _without("stream_options"),
    "stream": _without("stream", "stream_options"),
}


def leaving_out(body: Body, parts: Iterable[str]) -> Body:
    """The request without these parts."""
    for part in parts:
        body = PARTS[part](body)
    return body


def reductions(body: Body) -> Iterator[tuple[str, ...]]:
    """What to leave out of a refused request, one attempt after another: each part alone, then all of them."""
    present = [part for part, leave_out in PARTS.items() if leave_out(body) != body]
    yield from ((part,) for part in present)
    if len(present) > 1:
        yield tuple(present)
