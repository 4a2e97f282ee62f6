"""Train, measure and use small models that decide and write the reason for the decision they made.

    import reason2decide as r2d

    data = r2d.Dataset.from_pandas(frame, text="note", label="disposition", rationales={"nurse": "reason"})
    run = r2d.train(method="r2d", base="tiny", dataset=data, rationale_source="nurse", steps=200, out="run")
    answer = run.model.decide("29 yo F c/o watery diarrhea x 3 d.")
    results = r2d.evaluate(run.model, data)

Each name is imported when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from reason2decide.version import __version__

if TYPE_CHECKING:
    from reason2decide.api.datasets import Dataset
    from reason2decide.api.evaluating import ComparisonResults, EvaluationResults, compare, evaluate
    from reason2decide.api.models import Answer, Answers, Model, load
    from reason2decide.api.training import Run, train
    from reason2decide.data.predictions import Prediction
    from reason2decide.data.records import LabelSet, Record
    from reason2decide.errors import Reason2DecideError, UserError

__all__ = [
    "Answer",
    "Answers",
    "ComparisonResults",
    "Dataset",
    "EvaluationResults",
    "LabelSet",
    "Model",
    "Prediction",
    "Reason2DecideError",
    "Record",
    "Run",
    "UserError",
    "__version__",
    "compare",
    "evaluate",
    "load",
    "train",
]

_MODULES = {
    **dict.fromkeys(("Answer", "Answers", "Model", "load"), "api.models"),
    "Dataset": "api.datasets",
    **dict.fromkeys(("Run", "train"), "api.training"),
    **dict.fromkeys(("ComparisonResults", "EvaluationResults", "compare", "evaluate"), "api.evaluating"),
    "Prediction": "data.predictions",
    **dict.fromkeys(("LabelSet", "Record"), "data.records"),
    **dict.fromkeys(("Reason2DecideError", "UserError"), "errors"),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return __all__
