"""Default rates of a calibrated model. Plain numbers, which cost nothing to import."""

ERROR_RATE = 0.1  # ours: target among the decisions that are not deferred to a person
CONFIDENCE = 0.95  # ours: of the statement that the target is kept, over the draw of the validation split
UNSUPPORTED = 0.05  # ours: share of gold reasons of validation that the check of reasons would flag
MISCOVERAGE = 0.1  # ours: share of prediction sets that may miss the gold label
