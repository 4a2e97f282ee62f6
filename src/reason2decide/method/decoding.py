"""How the next token of a reason is chosen: guided away from another label, or drawn. Pure functions.

They take arrays of numpy or torch, whose module is `xp`.
"""

from __future__ import annotations

import math
from typing import Any

# Tokens under a tenth of the best one's probability are not written, whatever guidance or chance say: alpha of Li et
# al. 2023, "Contrastive decoding", and a usual value of min-p sampling (Nguyen et al. 2024).
PLAUSIBLE = 0.1


def plausible(xp: Any, log_probs: Any) -> Any:
    """Log-probabilities (rows, vocabulary), -inf where a token is not plausible."""
    least = xp.amax(log_probs, -1)[..., None] + math.log(PLAUSIBLE)
    return xp.where(log_probs >= least, log_probs, -math.inf)


def guided(xp: Any, own: Any, rival: Any, guidance: float) -> Any:
    """log p(t | y) + w (log p(t | y) - log p(t | y')), of the plausible tokens under y (rows, vocabulary).

    It prefers what the label makes more probable than its rival does. Source: classifier-free guidance (Sanchez et al.
    2023) against the rival's prompt.

    Args:
        own, rival: log-probabilities given the label y and its rival y'.
        guidance: w; 0 leaves `own` as it is.
    """
    kept = plausible(xp, own)
    return xp.where(kept > -math.inf, own + guidance * (own - rival), kept)
