"""L_cycle of Reason2Decide-C: the rationale, as a distribution over tokens, must let the model recover the label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from reason2decide.method.losses import IGNORED, token_log_likelihood
from reason2decide.model.architectures import Architecture
from reason2decide.model.padding import padded
from reason2decide.model.prompt_encoder import PromptEncoder


def cycle_loss(
    architecture: Architecture,
    encoder: PromptEncoder,
    logits: Tensor,
    target_ids: Tensor,
    labels: Sequence[str],
    temperature: float,
) -> Tensor:
    """-log P(y~ | "predict: {r^}"), mean over the label's tokens, of each row, (rows,) (Reason2Decide-C).

    r^ is the rationale's Gumbel-softmax as soft embeddings. Unlike in the authors' code padding is masked, so that a
    row does not depend on the others in its batch.

    Args:
        logits: of the rationale, (rows, target length, vocabulary).
        target_ids: the rationale's tokens, `IGNORED` where there are none, (rows, target length).
        labels: y~ of each row.
        temperature: of the Gumbel-softmax.
    """
    embed = architecture.model.get_input_embeddings()
    logits, target_ids = _without_leads(logits, target_ids)
    soft = functional.gumbel_softmax(logits.float(), temperature) @ embed.weight.float()
    soft = soft * getattr(embed, "embed_scale", 1.0)
    special = torch.isin(target_ids, torch.tensor([*encoder.opens, *encoder.ends], device=target_ids.device))
    hard = embed(target_ids.clamp(min=0))
    written = torch.where(special[..., None], hard, soft.to(hard.dtype))[:, len(encoder.opens) :]
    head = embed(torch.tensor(encoder.predict_head, device=target_ids.device)).expand(len(target_ids), -1, -1)
    mask = (target_ids != IGNORED)[:, len(encoder.opens) :]
    if not encoder.after:  # where a text has no end token of its own, none is read after the rationale either
        ends = torch.isin(target_ids, torch.tensor(encoder.ends, device=target_ids.device))
        mask &= ~ends[:, len(encoder.opens) :]
    given = [*architecture.start, *encoder.decide([]).lead]
    answers = [encoder.label_ids(label) for label in labels]
    ids, _ = padded([[*given, *answer[:-1]] for answer in answers], 0, target_ids.device)
    targets, _ = padded([[*[IGNORED] * (len(given) - 1), *answer] for answer in answers], IGNORED, target_ids.device)
    mask = torch.cat([mask.new_ones(head.shape[:2]), mask], 1).long()
    recovered = architecture.learn_embedded(torch.cat([head, written], 1), mask, ids)
    tokens = torch.tensor([len(answer) for answer in answers], device=target_ids.device)
    return -token_log_likelihood(recovered, targets).sum(-1) / tokens


def _without_leads(logits: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets from each row's first target on; what comes before it is `IGNORED` behind it."""
    first = (target_ids != IGNORED).int().argmax(1)
    if not target_ids.shape[1] or not bool(first.any()):
        return logits, target_ids
    places = (torch.arange(target_ids.shape[1], device=target_ids.device) + first[:, None]) % target_ids.shape[1]
    return logits.gather(1, places[..., None].expand_as(logits)), target_ids.gather(1, places)
