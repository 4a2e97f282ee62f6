"""Reading what comes between a text and the answer, of whatever lengths, without padding in between."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reason2decide.model.architectures import Architecture
from reason2decide.model.architectures.readings import TextReading
from reason2decide.model.padding import on_device


def after_leads(
    architecture: Architecture, reading: TextReading, leads: Sequence[Sequence[int]]
) -> tuple[Tensor, TextReading, list[tuple[int, ...]]]:
    """Read the start token and as much of all leads as they have tokens in common length.

    Rows then continue with the rest of their own lead, token by token beside rows that already answer: no row has
    padding before its answer, so it reads what it would read alone.

    Returns:
        Log-probabilities of the next token (rows, vocabulary), float32; the reading; the rest of each lead.
    """
    shortest = min(map(len, leads))
    opening = [(*architecture.start, *lead[:shortest]) for lead in leads]
    ids = on_device(torch.tensor(opening), reading.mask.device)
    logits, begun = architecture.extend(reading, ids)
    return logits[:, -1].float().log_softmax(-1), begun, [tuple(lead[shortest:]) for lead in leads]
