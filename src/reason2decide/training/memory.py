"""How much memory training will take, estimated before it starts, and how much it took."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reason2decide.console import say, warn
from reason2decide.training.batches import Rows
from reason2decide.training.features import Example, SplitFeatures
from reason2decide.training.objective import Objective

GIB = 2**30


def announce_memory(
    stage: str, objective: Objective, optimizer: torch.optim.Optimizer, features: SplitFeatures, widest: Rows
) -> int:
    """Say how much memory a stage will take, and return it in bytes.

    Activations are measured, not computed: one forward pass of the longest record of the widest batch, times its
    records. So the estimate holds for any architecture, precision and attention.
    """
    example = features[max(widest.tolist(), key=lambda row: len(features.texts[row]))]
    now, state = used_bytes(objective.device), state_bytes(objective.model, optimizer)
    passes = [(objective.stage.learns_labels, _label_pass), (objective.stage.learns_rationales, _rationale_pass)]
    one_record = max(saved_bytes(partial(run, objective, example)) for learnt, run in passes if learnt)
    activations = len(widest) * one_record
    estimate = now + state + activations
    say(
        f"{stage}: memory about {estimate / GIB:.2f} GiB (in use now {now / GIB:.2f}, gradients and optimizer "
        f"{state / GIB:.2f}, activations of {len(widest)} records {activations / GIB:.2f})"
    )
    total = total_bytes(objective.device)
    if total is not None and estimate > total:
        warn(
            f"that is more than the {total / GIB:.0f} GiB of the GPU; use a smaller batch_tokens or batch_size, "
            "gradient_checkpointing, optimizer = 'adafactor', lora, or fsdp over several GPUs"
        )
    return estimate


def report_peak(stage: str, device: torch.device, estimate: int) -> None:
    """Say how much memory the stage took at most."""
    peak = peak_bytes(device)
    say(f"{stage}: memory peak {peak / GIB:.2f} GiB, {peak / estimate:.2f} of the estimate")


def _label_pass(objective: Objective, example: Example) -> Any:
    with objective.computing():
        return objective.label_loss(objective.predict_batch([example]), 1, objective.model)


def _rationale_pass(objective: Objective, example: Example) -> Any:
    with objective.computing():
        batch, _ = objective.explain_batch([example], [example.label])
        return objective.rationale_loss(batch, 1, objective.model)


def state_bytes(model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of gradients and optimizer states, which do not exist before the first step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(_local_bytes(parameter) for parameter in trained)
    # AdamW keeps two moments per weight; Adafactor a row and a column of each matrix (Shazeer and Stern 2018).
    if isinstance(optimizer, torch.optim.AdamW):
        return gradients + 2 * gradients
    factors = (p.element_size() * (p.shape[-1] + p.numel() // p.shape[-1]) for p in trained if p.dim() > 1)
    return gradients + int(sum(factors))


def _local_bytes(parameter: Any) -> int:
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return int(local.numel() * local.element_size())


def saved_bytes(forward: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for its backward pass, weights not counted; measured, not computed."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not (tensor.is_leaf and tensor.requires_grad):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # kept until the count is done, so that no storage is counted under another's address
        total = sum(seen.values())
        del result
    return total


def used_bytes(device: torch.device) -> int:
    """Bytes in use now: the GPU's by tensors, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:  # noqa: PTH123
            return int(stream.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return peak_bytes(device)


def peak_bytes(device: torch.device) -> int:
    """The most bytes in use since the start: the GPU's by tensors, else the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # absent on Windows, where everything but training works

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_bytes(device: torch.device) -> int | None:
    """Total memory of the device in bytes, if known."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
