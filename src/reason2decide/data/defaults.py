"""Default numbers and names that the command line shows; importing them costs nothing."""

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}  # ours: shares of the splits
CALL_COUNTS = {"train": 4000, "validation": 500, "test": 1000}  # ours: synthetic calls in each split
LABEL_NOISE = 0.05  # ours: share of synthetic calls with an adjacent label
FOLDS = 5  # ours: of out-of-fold predictions; each model then learns from four fifths of the records
CALL_LOG = "calls.sqlite"  # in a dataset's folder: what language models answered about it (`llm/client/log.py`)
