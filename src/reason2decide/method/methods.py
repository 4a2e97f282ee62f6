"""The methods as data: a method is a tuple of stages, and a stage is settings of one loss.

    loss_t = alpha_t · L_label + (1 - alpha_t) · L_rationale

Add a method by adding an entry to `METHODS`; the command line and the configuration then list it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal

from reason2decide.errors import ConfigError
from reason2decide.method.conditioning import OnDisagreement

Explain = Literal["none", "unconditioned", "conditioned"]
Layout = Literal["two-prompt", "one-pass"]
Selection = Literal["rationale_loss", "macro_f1", "decision_and_reason"]


# Ours: checkpoints of every method's last stage count from where those of r2d do, so that none has more to pick from.
SELECT_FROM = 0.65


@dataclass(frozen=True, slots=True)
class Stage:
    """One training stage: what it learns, and how its best checkpoint is selected.

    `alpha` is the label task's final weight: 0 trains rationales only, 1 labels only. `explain` is the rationale
    task's prompt: none at all, the text alone, or the text and a label. `warmup_share` and `ramp_share` are shares of
    the stage's steps: alpha rises from 0 over the warm-up, the sampling probability from 0 to `sampling_cap` over
    the ramp that follows. Checkpoints count from `select_from` on, a share of the steps too.

    How the rationale comes to follow the label: `on_disagreement` says what is learnt under a label that is not the
    gold one; a `contrast_share` of the records that have a rationale for y- learn that; `posterior_weight` is lambda of
    L_post, for a `posterior_share` of the records; `cycle_weight` weighs L_cycle; `adaptive_sampling` draws confident
    predictions more often; `conditioning_dropout` predicts y^ with it.
    """

    name: str
    alpha: float
    explain: Explain
    warmup_share: float = 0.0
    ramp_share: float = 0.0
    sampling_cap: float = 0.0
    selection: Selection = "macro_f1"
    patience: int = 5
    select_from: float = SELECT_FROM
    on_disagreement: OnDisagreement = "gold"
    conditioning_dropout: bool = True
    contrast_share: float = 0.0
    posterior_weight: float = 0.0
    posterior_share: float = 0.25
    adaptive_sampling: bool = False
    cycle_weight: float = 0.0

    @property
    def learns_labels(self) -> bool:
        return self.alpha > 0

    @property
    def learns_rationales(self) -> bool:
        return self.alpha < 1 and self.explain != "none"

    @property
    def learns_contrasts(self) -> bool:
        """Whether it learns from rationales for other labels than the gold one."""
        return self.learns_rationales and self.on_disagreement == "contrast"

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses it has, by their names in the log."""
        conditioned = self.explain == "conditioned"
        has = {
            "label_loss": self.learns_labels,
            "rationale_loss": self.learns_rationales,
            "posterior_loss": conditioned and self.posterior_weight > 0,
            "cycle_loss": conditioned and self.cycle_weight > 0,
        }
        return tuple(name for name, present in has.items() if present)

    @property
    def needs_labels_shown(self) -> bool:
        """Whether it scores labels of training records: to show the model's own, or to contrast with its runner-up."""
        asked = self.sampling_cap > 0 or self.posterior_weight > 0 or self.contrast_share > 0
        return self.explain == "conditioned" and asked

    def select_step(self, steps: int) -> int:
        """The first step whose checkpoint may be the best one: not before warm-up and ramp have ended."""
        return max(int(self.select_from * steps), self.warmup_steps(steps) + self.ramp_steps(steps))

    def warmup_steps(self, steps: int) -> int:
        """Steps of the warm-up in a stage of `steps` (rounded down, as the authors' code does)."""
        return int(self.warmup_share * steps)

    def ramp_steps(self, steps: int) -> int:
        """Steps of the ramp in a stage of `steps` (rounded down, as the authors' code does)."""
        return int(self.ramp_share * steps)


@dataclass(frozen=True, slots=True)
class Method:
    """A named tuple of stages; `explain` is how its finished model is prompted for a rationale.

    `layout` says whether each task has its own prompt (paper), or the text is read once and the answer is the label and
    then the rationale (ours; its reasons follow the label better: docs/results.md).
    """

    summary: str
    stages: tuple[Stage, ...]
    layout: Layout = "two-prompt"

    @property
    def explain(self) -> Explain:
        return self.stages[-1].explain


# Stage 1: rationale writing only, best validation loss; patience 3 (authors' code).
_STAGE1 = Stage("stage1", alpha=0.0, explain="unconditioned", selection="rationale_loss", patience=3, select_from=0.0)
# Stage 2: alpha 0.7 after 5 % warm-up, pi over 60 % of the steps up to 0.9 (paper); patience 5 (authors' code).
_STAGE2 = Stage("stage2", alpha=0.7, explain="conditioned", warmup_share=0.05, ramp_share=0.6, sampling_cap=0.9)
_STAGE2_GOLD = replace(_STAGE2, sampling_cap=0.0)
# Where the rationale follows the label (ours): y^ is what the model gives at use, and reasons count for the checkpoint.
_FOLLOWING = replace(_STAGE2, conditioning_dropout=False, selection="decision_and_reason")
_SKIP = replace(_FOLLOWING, on_disagreement="skip")
# Share 0.25: ours; with 0 the reasons follow the decision less (docs/results.md).
_CONTRAST = replace(_FOLLOWING, on_disagreement="contrast", contrast_share=0.25)
_POSTERIOR_WEIGHT = 0.1  # ours

METHODS: dict[str, Method] = {
    "r2d": Method(
        "Reason2Decide: rationales first, then both tasks while y~ shifts to the model's own labels", (_STAGE1, _STAGE2)
    ),
    "sft": Method("plain fine-tuning: labels only, no rationale", (Stage("sft", alpha=1.0, explain="none"),)),
    # alpha 0.5: the default weight in Hsieh et al. 2023's code.
    "dss": Method(
        "Distilling Step-by-Step: labels and unconditioned rationales together",
        (Stage("dss", alpha=0.5, explain="unconditioned"),),
    ),
    "r2d-skip": Method(
        "r2d whose rationales are learnt under the gold label only: rows shown a wrong one are left out",
        (_STAGE1, _SKIP),
        layout="one-pass",
    ),
    "r2d-posterior": Method(
        "r2d-skip that also learns to tell from the gold rationale which label it was written for",
        (_STAGE1, replace(_SKIP, posterior_weight=_POSTERIOR_WEIGHT)),
        layout="one-pass",
    ),
    "r2d-contrast": Method(
        "r2d whose rationales argue for the label shown, where the data have such contrasts; other rows are left out",
        (_STAGE1, _CONTRAST),
        layout="one-pass",
    ),
    "r2d-contrast-posterior": Method(
        "r2d-contrast and r2d-posterior together",
        (_STAGE1, replace(_CONTRAST, posterior_weight=_POSTERIOR_WEIGHT)),
        layout="one-pass",
    ),
    # Weight 0.1: the authors' of Reason2Decide-C.
    "r2d-c": Method(
        "Reason2Decide-C: shows confident predictions more often, and must recover the label from the rationale",
        (_STAGE1, replace(_FOLLOWING, adaptive_sampling=True, cycle_weight=0.1)),
    ),
    "r2d-no-stage1": Method("ablation of r2d: Stage 2 from the base model", (_STAGE2,)),
    "r2d-no-sampling": Method("ablation of r2d: rationales always see the gold label", (_STAGE1, _STAGE2_GOLD)),
}


def method_named(name: str) -> Method:
    """The method of this name.

    Raises:
        ConfigError: there is no such method.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"there is no method {name!r}; {hint}choose one of {', '.join(METHODS)}")
    return METHODS[name]
