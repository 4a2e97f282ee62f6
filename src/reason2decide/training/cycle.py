"""L_cycle of Reason2Decide-C: the rationale, as a distribution over tokens, must let the model recover the label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from reason2decide.method.losses import IGNORED, token_log_likelihood
from reason2decide.model.padding import padded
from reason2decide.model.prompt_encoder import PromptEncoder


def cycle_loss(
    model: Any, encoder: PromptEncoder, logits: Tensor, target_ids: Tensor, labels: Sequence[str], temperature: float
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
    embed = model.get_input_embeddings()
    soft = functional.gumbel_softmax(logits.float(), temperature) @ embed.weight.float()
    soft = soft * getattr(embed, "embed_scale", 1.0)
    special = torch.isin(target_ids, torch.tensor([*encoder.before, *encoder.after], device=target_ids.device))
    hard = embed(target_ids.clamp(min=0))
    written = torch.where(special[..., None], hard, soft.to(hard.dtype))[:, len(encoder.before) :]
    head = embed(torch.tensor(encoder.predict_head, device=target_ids.device)).expand(len(target_ids), -1, -1)
    mask = (target_ids != IGNORED)[:, len(encoder.before) :]
    targets, real = padded([encoder.label_ids(label) for label in labels], IGNORED, target_ids.device)
    output = model(
        inputs_embeds=torch.cat([head, written], 1),
        attention_mask=torch.cat([mask.new_ones(head.shape[:2]), mask], 1).long(),
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels=targets),
        use_cache=False,
    )
    return -token_log_likelihood(output.logits, targets).sum(-1) / real.sum(-1)
