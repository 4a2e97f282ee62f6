"""Decide any number of cases into a folder of parts: on one machine or many, and on after any fault.

`Decider` is the stage for other people's pipelines (Ray Data, Spark). It is imported when it is first used, so that
the options of a batch can be shown without a model's libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reason2decide.batch.decider import Decider

__all__ = ["Decider"]


def __getattr__(name: str) -> Any:
    if name != "Decider":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from reason2decide.batch.decider import Decider

    return Decider
