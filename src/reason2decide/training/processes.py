"""The processes that train together, and what they share: sums, objects, gradients, sharded weights.

A launcher (`torchrun`, `accelerate launch`) starts one process per GPU, on one machine or several; without one
there is a single process. Nothing here depends on what is trained.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from reason2decide.errors import ConfigError, UserError

# Ours: how long a process waits for the others before it gives up, so that a dead one ends the run.
TIMEOUT = timedelta(minutes=30)
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Processes:
    """This process among those that train together."""

    def __init__(self) -> None:
        for variable, engine in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
            if os.environ.get(variable, "false").lower() in ("1", "true"):
                raise ConfigError(
                    f"the launcher asks for {engine}; start it without {engine}, and set fsdp = true in the "
                    "configuration to shard gradients and optimizer states"
                )
        self._state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
        self.rank: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.device: torch.device = self._state.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def local_main_first(self) -> Any:
        """A context that the first process of each machine enters before the others."""
        return self._state.local_main_process_first()

    def wait(self) -> None:
        """Wait until every process has reached this point."""
        self._state.wait_for_everyone()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_numbers(self, numbers: Iterable[float]) -> list[float]:
        """The sum of each number over the processes."""
        values = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        return [float(value) for value in self.sum(values).tolist()]

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in rank order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def sum_gradients(self, model: Any) -> None:
        """Replace each gradient by its sum over the processes; sharded weights have that already."""
        if self.count > 1 and not is_sharded(model):
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
                work.wait()

    @contextlib.contextmanager
    def main_only(self) -> Iterator[None]:
        """What the main process does while the others wait: a user's error that it raises is raised by all.

        Raises:
            UserError: as the main process.
        """
        error: UserError | None = None
        try:
            yield
        except UserError as own:
            error = own
        for found in self.gather(error):
            if found is not None:
                raise found

    def end(self) -> None:
        """Leave the group; for a run that ended normally."""
        if self.count > 1:
            self.wait()
            self._state.destroy_process_group()


def shard(model: Any) -> Any:
    """Shard weights, gradients and optimizer states over the processes (FSDP, block by block), and return the model.

    Gradients are summed, not averaged: losses are divided by the target tokens of all processes already.
    """
    from torch.distributed.fsdp import fully_shard

    for block in _blocks(model):
        fully_shard(block)
    fully_shard(model)
    for module in model.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model


def _blocks(model: Any) -> list[torch.nn.Module]:
    """The repeated layers of encoder and decoder: the items of the outermost module lists."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    inner = {id(module) for outer in lists for block in outer for module in block.modules()}
    return [block for one in lists if id(one) not in inner for block in one]


def is_sharded(model: Any) -> bool:
    """Whether `shard` was applied."""
    return hasattr(model, "unshard")


class WholeCopy:
    """A plain copy of a sharded model, to score labels with, which takes different passes on each process.

    Sharded layers communicate with the other processes whenever they run, so all would have to run equally often.
    """

    def __init__(self, model: Any) -> None:
        self.model = copy.deepcopy(model)

    def refresh(self, sharded: Any) -> Any:
        """Copy the weights of the sharded model, which all processes take part in, and return the copy."""
        parameters = dict(self.model.named_parameters())
        sharded.reshard()  # between forward and backward the outermost weights are still whole
        with torch.no_grad():
            for name, parameter in sharded.named_parameters():
                parameters[name].copy_(parameter.full_tensor())
        return self.model


def whole_weights(model: Any, *, trained_only: bool = False) -> dict[str, Tensor]:
    """Name -> weights on the CPU, tied ones once; of a sharded model in the main process only, but all call it.

    Args:
        trained_only: leave out frozen weights; for models that are not sharded.
    """
    if trained_only:
        return {name: own.detach().cpu().contiguous() for name, own in model.named_parameters() if own.requires_grad}
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    state: dict[str, Any] = get_model_state_dict(model, options=_WHOLE)
    return {name: tensor.contiguous() for name, tensor in state.items() if name in names}


def whole_optimizer_state(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """PARAMETER/QUANTITY -> tensors of the optimizer's state, without its settings; as `whole_weights`."""
    whole: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    return {
        f"{name}/{quantity}": torch.as_tensor(value).contiguous()
        for name, quantities in whole.get("state", {}).items()
        for quantity, value in quantities.items()
    }


def load_optimizer_state(model: Any, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Restore what `whole_optimizer_state` returned; the optimizer keeps its settings."""
    by_parameter: dict[str, Any] = {}
    for key, value in state.items():
        name, quantity = key.split("/")
        by_parameter.setdefault(name, {})[quantity] = value
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        {**group, "params": [names[id(parameter)] for parameter in group["params"]]} for group in optimizer.param_groups
    ]
    # Weights that no loss reaches, such as the pooler of a BERT encoder, have no state: not strict.
    options = dataclasses.replace(_WHOLE, strict=False)
    set_optimizer_state_dict(model, optimizer, {"state": by_parameter, "param_groups": groups}, options=options)
