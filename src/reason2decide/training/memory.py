"""How much memory training will take, planned before it starts, and how much it took."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reason2decide.console import say, warn
from reason2decide.training.batches import Rows
from reason2decide.training.features import Example, SplitFeatures
from reason2decide.training.objective import LOSSES, Counts, Objective, StepSize
from reason2decide.training.shown_labels import ShownLabels

GIB = 2**30
GPU_SHARE, CPU_SHARE = 0.6, 0.2  # ours: of the device's memory for activations; a CPU's is shared with all else
CPU_PASS_TOKENS = 8192  # ours: more in one pass makes a CPU no faster (docs/performance.md)
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class MemoryPlan:
    """How much memory a stage takes, in bytes, and how many tokens one of its passes may therefore have.

    `pass_tokens` counts padding and targets. It follows from the device's whole memory and the model alone, not from
    what happens to be free, so that a stage that is trained again on the same device takes the same passes.
    """

    estimate: int
    pass_tokens: int


def plan_memory(
    stage: str,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    features: SplitFeatures,
    widest: Rows,
    *,
    divisible: bool = True,
) -> MemoryPlan:
    """Say how much memory a stage will take, and choose how much of a batch is computed at a time.

    Activations are measured, not computed: one forward pass of the longest record of the widest batch, per token. So
    the plan holds for any architecture, precision and attention. A step learns from its whole batch however it is cut
    (`objective`), so a batch is cut where its activations would take more than their share of the device's memory.

    Args:
        divisible: whether batches may be cut at all.
    """
    prompts, (_, rationales) = features.prompt_lengths_of(widest), features.target_lengths_of(widest)
    # Of a record without a rationale only half of what a step may take could be measured.
    complete = rationales > 0 if objective.stage.learns_rationales and rationales.any() else np.ones_like(prompts, bool)
    longest = int(np.argmax((prompts + rationales) * complete))
    example, now = features[int(widest[longest])], used_bytes(objective.device)
    state = state_bytes(objective.model, optimizer)
    passes = [(objective.stage.learns_labels, _label_pass), (objective.stage.learns_rationales, _rationale_pass)]
    # A text that is read once for both tasks keeps the activations of both.
    together = sum if objective.encoder.form.shares_text else max
    one_record = together(
        saved_bytes(partial(run, objective, example), objective.model) for learnt, run in passes if learnt
    )
    measured_tokens = int(prompts[longest]) + int(rationales[longest])
    record_tokens = int(prompts.max()) + int(features.widest_rationales_of(widest).max())  # padding included
    one_record = math.ceil(one_record * record_tokens / measured_tokens)
    pass_tokens = len(widest) * record_tokens
    total = total_bytes(objective.device)
    if divisible and total is not None:
        on_gpu = objective.device.type == "cuda"
        affordable = int((GPU_SHARE if on_gpu else CPU_SHARE) * total / one_record * record_tokens)
        ceiling = affordable if on_gpu else min(affordable, CPU_PASS_TOKENS)
        pass_tokens = min(pass_tokens, max(record_tokens, ceiling))
    at_once = max(1, pass_tokens // record_tokens)
    estimate = now + state + at_once * one_record
    say(
        f"{stage}: memory about {estimate / GIB:.2f} GiB (in use now {now / GIB:.2f}, gradients and optimizer "
        f"{state / GIB:.2f}, activations of {at_once} records {at_once * one_record / GIB:.2f})"
    )
    if at_once < len(widest):
        say(f"{stage}: batches of {len(widest)} records, of which {at_once} of the longest are computed at a time")
    if total is not None and estimate > total:
        warn(
            f"that is more than the {total / GIB:.0f} GiB there are; use gradient_checkpointing, optimizer = "
            "'adafactor', lora, shorter lengths, or fsdp over several GPUs"
        )
    return MemoryPlan(estimate, pass_tokens)


def report_peak(stage: str, device: torch.device, estimate: int) -> None:
    """Say how much memory the stage took at most."""
    peak = peak_bytes(device)
    say(f"{stage}: memory peak {peak / GIB:.2f} GiB, {peak / estimate:.2f} of the estimate")


def _label_pass(objective: Objective, example: Example) -> Any:
    with objective.computing():
        return objective.label_loss(objective.predict_batch([example]), 1, objective.architecture)


def _rationale_pass(objective: Objective, example: Example) -> Any:
    """All that a step may take of a record: with L_post, its rationale under two labels."""
    stage = objective.stage
    contrasted = stage.posterior_weight and stage.explain == "conditioned" and len(example.rationale)
    rivals = {0: example.label} if contrasted else {}
    with objective.computing():
        losses = objective.explained(
            [example], ShownLabels([example.label], rivals), objective.steps, StepSize(1, 1, 1), Counts()
        )
        return objective.joint({**dict.fromkeys(LOSSES, 0.0), **losses}, objective.steps)


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
    local = _local(parameter)
    return int(local.numel() * local.element_size())


def _local(tensor: Any) -> Tensor:
    """This process's part of a sharded tensor, or the tensor itself."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def saved_bytes(forward: Callable[[], Any], model: Any) -> int:
    """Bytes that a forward pass of a model keeps for its backward pass, its weights not counted; measured."""
    weights = {_local(parameter).untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = _local(tensor).untyped_storage()
        if storage.data_ptr() not in weights:
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
    """Memory of the device in bytes: the GPU's, or what this process may use of the machine's; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = []
    with contextlib.suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            limits.append(int(Path(file).read_text("ascii")))
    return min(limits, default=None)
