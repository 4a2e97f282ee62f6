"""Compiled forward passes, whose compiler may fail: said with what to do, rather than with its traceback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from reason2decide.errors import ConfigError
from reason2decide.model.hub import first_line


def compiled(model: Any) -> Callable[..., Any]:
    """The forward pass of a model through `torch.compile`, for batches of any shape; it is compiled when first called.

    Raises:
        ConfigError: (when called) it cannot be compiled on this machine.
    """
    forward: Any = torch.compile(model, dynamic=True)

    def run(*arguments: Any, **named: Any) -> Any:
        try:
            return forward(*arguments, **named)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            raise ConfigError(
                f"compile = true, but this base cannot be compiled on this machine ({type(error).__name__}: "
                f"{first_line(error)}); leave compile out"
            ) from None

    return run
