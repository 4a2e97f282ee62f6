"""Defaults by the kind of base: the rate that keeps a pre-trained model's knowledge teaches random weights nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from reason2decide.model.hub import SCRATCH


@dataclass(frozen=True)
class BaseDefaults:
    """What a configuration takes for keys that it leaves out; `dropout` None keeps the base's own rate."""

    learning_rate: float
    learning_rate_warmup: float
    batch_size: int
    dropout: float | None


# By kind, with the source.
KINDS: Mapping[str, tuple[BaseDefaults, str]] = {
    "pre-trained": (BaseDefaults(5e-5, 0.0, 64, None), "authors' code"),
    "with lora": (BaseDefaults(5e-4, 0.06, 16, None), "Hu et al. 2021, table 9, RoBERTa-base"),
    SCRATCH: (BaseDefaults(1e-3, 0.05, 16, 0.0), "ours: docs/results.md"),
}
KEYS = tuple(field.name for field in fields(BaseDefaults))


def defaults_for(base: object, lora: object) -> BaseDefaults:
    """The defaults for a base, by its name and whether adapters are trained."""
    kind = "with lora" if lora is not None else SCRATCH if base == SCRATCH else "pre-trained"
    return KINDS[kind][0]


def completed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's content with the defaults for its base; a table by stage gets them for its other stages."""
    defaults, found = defaults_for(content.get("base"), content.get("lora")), dict(content)
    for key in KEYS:
        default = getattr(defaults, key)
        if isinstance(found.get(key), Mapping):
            found[key] = {"*": default, **found[key]}
        elif found.get(key) is None and default is not None:
            found[key] = default
    return found


def told(key: str) -> str:
    """The defaults of a key with their sources, for `r2d train --explain`."""
    values = {kind: (getattr(defaults, key), source) for kind, (defaults, source) in KINDS.items()}
    return "; ".join(
        f"{kind} {'as the base' if v is None else format(v, 'g')} ({s})" for kind, (v, s) in values.items()
    )
