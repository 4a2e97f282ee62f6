"""What the rationale task learns to write when the label it is shown is not the gold one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

OnDisagreement = Literal["gold", "skip", "contrast"]
Target = TypeVar("Target")


def target_for(
    shown: str, gold: str, rationale: Target, contrasts: Mapping[str, Target], on_disagreement: OnDisagreement
) -> Target | None:
    """The target of the explain prompt that shows a label; None leaves the row out of L_expl.

    Where the label shown, y~, is the gold one, y*, it is the gold rationale r*. Where it is not:

    - `gold`: r* all the same (paper, "L_expl"). The label then says nothing about the target, and a model learns to
      ignore it.
    - `skip`: none (ours): 1{y~ = y*} L_expl.
    - `contrast`: the record's rationale for y~, or none where it has none (ours; label-specific explanations are those
      of NILE, Kumar and Talukdar 2020).
    """
    if shown == gold or on_disagreement == "gold":
        return rationale
    return contrasts.get(shown) if on_disagreement == "contrast" else None
