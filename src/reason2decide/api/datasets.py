"""A dataset in Python: from and to pandas, lists of dicts and Hugging Face datasets."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reason2decide.api.html import table
from reason2decide.data.check import CheckReport, check_dataset
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.defaults import SHARES
from reason2decide.data.records import JsonlRecords, LabelSet, Record
from reason2decide.data.sources.rows import MemoryTable
from reason2decide.data.sources.table import import_rows
from reason2decide.data.sources.table_records import Columns
from reason2decide.errors import DataError, require

SPLIT_COLUMN = "__split__"  # temporary column for the splits of a `DatasetDict`


class Dataset:
    """A dataset: labelled records in the splits train, validation and test.

    `Dataset("data")` opens a folder that `r2d data import` wrote. One made from memory is in a private temporary
    folder, which is deleted with the object: `save` keeps it.

    Raises:
        DataError: the folder is not a dataset.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = DatasetFolder.open(path)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def from_list(
        cls,
        rows: Sequence[Mapping[str, Any]],
        *,
        text: str | Sequence[str],
        label: str,
        rationales: Mapping[str, str] = {},
        contrasts: Mapping[str, str] = {},
        id: str | None = None,
        group: str | None = None,
        choices: str | None = None,
        split: str | None = None,
        meta: Sequence[str] = (),
        labels: Sequence[str] | LabelSet | None = None,
        shares: Mapping[str, float] = SHARES,
        seed: int = 0,
        name: str = "rows",
    ) -> Dataset:
        """Make a dataset from a list of dicts. All other `from_` methods take the same arguments.

        Args:
            text: column to decide on, or several, which are joined, each after its name.
            label: column of gold labels.
            rationales: source -> its column, as in {"nurse": "reason"}.
            id: column of unique ids; None derives ids from the texts.
            contrasts: source, or "SOURCE/LABEL", and the column with its rationales for other labels than the gold one:
                an object of label -> text, or the text for that label.
            group: column whose values are never divided between splits, such as the patient.
            choices: column of each record's own choices: a list, or "a|b|c".
            split: column with train, validation or test; None divides by `shares`.
            meta: further columns to keep, for slicing results.
            labels: the label set in order; None takes those found, sorted. A `LabelSet` says whether they are ordinal.
            shares: shares of train, validation and test.
            seed: seed of the division into splits.
            name: name of the dataset in results.

        Raises:
            DataError: a column is missing, or a row cannot be used; the message names it.

        Example:
            >>> import reason2decide as r2d
            >>> rows = [{"note": f"cough for {n} days", "where": "doctor" if n > 9 else "home"} for n in range(40)]
            >>> data = r2d.Dataset.from_list(rows, text="note", label="where")
            >>> data
            Dataset('rows', train=32, validation=4, test=4)
            >>> data["test"][0].label in data.labels.values
            True
        """
        columns = Columns(
            text=(text,) if isinstance(text, str) else tuple(text),
            label=label,
            rationales=dict(rationales),
            id=id,
            group=group,
            choices=choices,
            split=split,
            meta=tuple(meta),
            contrasts=dict(contrasts),
        )
        label_set = labels if isinstance(labels, LabelSet) or labels is None else LabelSet(tuple(labels))
        temporary = tempfile.TemporaryDirectory(prefix="reason2decide-")
        out = Path(temporary.name) / "dataset"  # whatever the name is
        import_rows(
            [MemoryTable(Path(name), rows)], out, columns, labels=label_set, shares=shares, seed=seed, name=name
        )
        made = cls(out)
        made._temporary = temporary
        return made

    @classmethod
    def from_pandas(cls, frame: Any, *, name: str = "frame", **columns: Any) -> Dataset:
        """Make a dataset from a `pandas.DataFrame`; arguments as `from_list`. NaN and None are empty cells.

        Example:
            >>> import pandas, reason2decide as r2d
            >>> frame = pandas.read_csv("notes.csv")
            >>> r2d.Dataset.from_pandas(frame, text="note", label="disposition", rationales={"nurse": "reason"})
            Dataset('frame', train=48, validation=6, test=6)
        """
        frame = frame.astype(object).where(frame.notna(), None)
        return cls.from_list(frame.to_dict("records"), name=name, **columns)

    @classmethod
    def from_datasets(cls, dataset: Any, *, name: str = "dataset", **columns: Any) -> Dataset:
        """Make a dataset from a `datasets.Dataset`, or a `DatasetDict` of splits; arguments as `from_list`.

        Example:
            >>> import datasets, reason2decide as r2d
            >>> rows = datasets.load_dataset("csv", data_files="notes.csv", split="train")
            >>> r2d.Dataset.from_datasets(rows, text="note", label="disposition")
            Dataset('dataset', train=48, validation=6, test=6)
        """
        if not isinstance(dataset, Mapping):
            return cls.from_list(list(dataset), name=name, **columns)
        rows = [{**row, SPLIT_COLUMN: split} for split, part in dataset.items() for row in part]
        return cls.from_list(rows, name=name, split=SPLIT_COLUMN, **columns)

    @property
    def name(self) -> str:
        """The name of the dataset in results."""
        return self.folder.info.name

    @property
    def path(self) -> Path:
        """The dataset folder."""
        return self.folder.path

    @property
    def is_temporary(self) -> bool:
        """Whether the folder is deleted with this object."""
        return self._temporary is not None

    @property
    def labels(self) -> LabelSet:
        """The label set."""
        return self.folder.info.labels

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self.folder.hashes)

    def __getitem__(self, split: str) -> JsonlRecords:
        """The records of a split, read from the disk one at a time."""
        return self.folder.split(split)

    def check(self) -> CheckReport:
        """Find what in the data would make a result invalid, as `r2d data check` does."""
        return check_dataset(self.path)

    def save(self, path: str | Path, *, force: bool = False) -> Dataset:
        """Copy the dataset to a permanent folder, and return the dataset there.

        Raises:
            OutputError: the folder exists and `force` is false.
        """
        return Dataset(self.folder.copy_to(Path(path), force=force).path)

    def to_list(self, split: str | None = None) -> list[dict[str, Any]]:
        """A dict per record, of one split or of all: id, text, label, rationale_SOURCE, meta columns, split.

        Example:
            >>> import reason2decide as r2d
            >>> r2d.Dataset("data").to_list("test")[0]["label"]
            'home care'
        """
        return [_row(record, name) for name in ([split] if split else self.splits) for record in self[name]]

    def to_pandas(self, split: str | None = None) -> Any:
        """A `pandas.DataFrame` of `to_list`."""
        return require("pandas", "pandas").DataFrame(self.to_list(split))

    def to_datasets(self) -> Any:
        """A `datasets.DatasetDict` of the splits, rows as in `to_list`."""
        datasets = require("datasets", "datasets")
        rows = {split: self.to_list(split) for split in self.splits}
        # Every row needs every column: the library takes the columns of the first one for all.
        columns = list(dict.fromkeys(name for part in rows.values() for row in part for name in row))
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict({name: [row.get(name) for row in part] for name in columns})
                for split, part in rows.items()
            }
        )

    def _counts(self) -> dict[str, int]:
        return {split: len(self[split]) for split in self.splits}

    def __repr__(self) -> str:
        counts = ", ".join(f"{split}={count}" for split, count in self._counts().items())
        return f"Dataset({self.name!r}, {counts})"

    def _repr_html_(self) -> str:
        labels = ", ".join(self.labels.values) or "given by each record"
        return table(("split", "records"), self._counts().items(), f"{self.name}: {labels}")


def folder_of(dataset: Dataset | str | Path) -> DatasetFolder:
    """The folder of a dataset, given as an object or by its path."""
    return dataset.folder if isinstance(dataset, Dataset) else DatasetFolder.open(dataset)


def _row(record: Record, split: str) -> dict[str, Any]:
    row: dict[str, Any] = {"id": record.id, "text": record.text, "label": record.label}
    row |= {f"rationale_{source}": rationale for source, rationale in record.rationales.items()}
    # As JSON: tables have no column whose cells have keys of their own.
    row |= {f"contrasts_{source}": json.dumps(texts, ensure_ascii=False) for source, texts in record.contrasts.items()}
    if record.choices is not None:
        row["choices"] = list(record.choices)
    if record.group is not None:
        row["group"] = record.group
    taken = row.keys() & record.meta.keys()
    if taken:
        raise DataError(f"the meta column {min(taken)!r} of record {record.id!r} has the name of a record's own field")
    return {**row, **record.meta, "split": split}
