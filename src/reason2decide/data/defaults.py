"""Numbers that the command line shows; they cost nothing to import."""

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}  # ours: of the splits
CALL_COUNTS = {"train": 4000, "validation": 500, "test": 1000}  # ours: synthetic calls in each split
LABEL_NOISE = 0.05  # ours: share of synthetic calls with an adjacent label
