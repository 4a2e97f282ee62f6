"""The stage that decides: the model on a worker, with cases in and outcomes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from reason2decide.batch.parts import TYPES, row_of
from reason2decide.data.cases import Cases
from reason2decide.data.predictions import Prediction, Undecided
from reason2decide.data.records import Record
from reason2decide.data.sources.rows import Place
from reason2decide.errors import DataError, require
from reason2decide.model.predictor import Predictor
from reason2decide.model.reading import WHAT_FITS, ReadingSettings
from reason2decide.model.reasons import PLAIN, ReasonSettings

Outcome = Prediction | Undecided


@dataclass(frozen=True)
class BatchWork:
    """What a worker needs to know: the model, how it reads and explains, and the threads of a forward pass."""

    bundle: Path
    reading: ReadingSettings = WHAT_FITS
    reasons: ReasonSettings = PLAIN
    threads: int = 1


class Decider:
    """Decides and explains rows of a data frame; a stage for Ray Data's `map_batches` and Spark's `mapInPandas`.

    A frame has the columns that the model's texts are made of, and ids; what comes back has a row for each of them, in
    their order: the columns of `Prediction`, and `error`, the reason why a row has no decision.

    Args:
        bundle: a bundle or an export, on each machine under this path.
        id: column of ids; None: that of the import, or `id`.
        text: columns to read in place of those that the model was trained on.
        threads: processor threads of a forward pass.

    Raises:
        BundleError, MissingExtraError: as `Predictor.load`.
        DataError: when called, a frame lacks the ids.

    Example:
        # Ray
        rows.map_batches(Decider, fn_constructor_args=["bundle"], batch_format="pandas", concurrency=4)

        # Spark
        def decide(frames):
            yield from map(Decider("bundle"), frames)

        table.mapInPandas(decide, schema=Decider.SPARK_SCHEMA)
    """

    SPARK_SCHEMA: ClassVar[str] = ", ".join(f"{name} {kind}" for name, kind in {**TYPES, "error": "string"}.items())

    def __init__(
        self,
        bundle: str | Path,
        *,
        id: str | None = None,
        text: Sequence[str] = (),
        reading: ReadingSettings = WHAT_FITS,
        reasons: ReasonSettings = PLAIN,
        threads: int = 1,
    ) -> None:
        self._predictor = Predictor.load(Path(bundle), reading, reasons, threads=threads)
        self._cases = Cases(Path("frame"), self._predictor.bundle.manifest.recipe, tuple(text), id)

    @classmethod
    def of(cls, work: BatchWork) -> Decider:
        """The stage of a worker."""
        return cls(work.bundle, reading=work.reading, reasons=work.reasons, threads=work.threads)

    def __call__(self, frame: Any) -> Any:
        """Decide the rows of a `pandas.DataFrame`."""
        column = self._cases.id_column
        if column not in frame.columns:
            raise DataError(f"the frame has no column {column!r} of ids; name the one that has them with id=")
        rows = frame.to_dict("records")
        given = [self._cases.outcome(row, Place(f"row {number}", number), "") for number, row in enumerate(rows, 1)]
        decided = [_row(outcome) for outcome in self.outcomes(given)]
        return require("pandas", "pandas").DataFrame(decided, columns=[*TYPES, "error"], dtype=object)

    def outcomes(
        self, given: Sequence[Record | Undecided], on_progress: Callable[[int], None] = lambda rows: None
    ) -> list[Outcome]:
        """The outcome of each case in order; bad rows stay what they are.

        The same cases have the same outcomes to the last bit, whatever was decided before.

        Args:
            on_progress: gets the number of cases decided since it was called last.
        """
        self._predictor.engine.forget()
        decided = self._progressing([one for one in given if isinstance(one, Record)], on_progress)
        return [next(decided) if isinstance(one, Record) else one for one in given]

    def _progressing(self, records: Sequence[Record], on_progress: Callable[[int], None]) -> Iterator[Outcome]:
        told = 0
        for number, outcome in enumerate(self._predictor.outcomes(records), 1):
            yield outcome
            if number % PROGRESS == 0:
                on_progress(number - told)
                told = number


PROGRESS = 32  # ours: cases after which a worker tells how far it is


def _row(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Undecided):  # None rather than NaN, which Spark takes for a value
        return {**dict.fromkeys(TYPES), "id": outcome.id, "error": outcome.reason}
    return {**row_of(outcome), "error": None}
