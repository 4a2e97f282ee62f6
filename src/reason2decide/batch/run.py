"""A batch from end to end: files in, parts out, each row once, and on where it ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reason2decide.batch.cluster import RayCluster
from reason2decide.batch.crew import Crew, DecidedChunk, LostChunk
from reason2decide.batch.decider import BatchWork, Outcome
from reason2decide.batch.input import BatchInput
from reason2decide.batch.job import JOB_FILE, BatchJob, part_folder, read_job, whole_parts
from reason2decide.batch.parts import PARTS, PartFolder
from reason2decide.batch.settings import STANDARD_BATCH, BatchSettings
from reason2decide.batch.storage import LOCKS, Patience, alone_in, first_contact, lies_in, partial_name, place
from reason2decide.batch.workers import Workers
from reason2decide.console import ProgressBar, say, warn
from reason2decide.data.cases import Cases
from reason2decide.data.predictions import Prediction
from reason2decide.errors import OutputError, Reason2DecideError, require
from reason2decide.model.manifest import described_bundle
from reason2decide.model.reading import WHAT_FITS, ReadingSettings
from reason2decide.model.reasons import PLAIN, ReasonSettings
from reason2decide.version import __version__


@dataclass(frozen=True)
class Part:
    """A part: its file, and its rows with and without a decision."""

    file: str
    decided: int
    failed: int


@dataclass(frozen=True)
class Summary:
    """Rows that went in, came out with a decision, and failed; and the parts they are in."""

    rows: int
    decided: int
    failed: int
    parts: Sequence[Part]


@dataclass
class Caution:
    """What a person should know before relying on the decisions of a run."""

    decided: int = 0
    deferred: int = 0
    cut: int = 0
    unsupported: int = 0

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Add outcomes."""
        for own in outcomes:
            if isinstance(own, Prediction):
                self.decided += 1
                self.deferred += bool(own.deferred)
                self.cut += own.tokens is not None and own.tokens_read != own.tokens
                self.unsupported += own.reason_supports is False

    def __str__(self) -> str:
        return (
            f"of {self.decided} decisions made now {self.deferred} are left to a person (deferred), {self.cut} read "
            f"only a part of their text (tokens_read below tokens), {self.unsupported} have a reason that does not "
            "support them (reason_supports: false)"
        )


def decide_batch(
    bundle: Path,
    given: str,
    out: str,
    settings: BatchSettings = STANDARD_BATCH,
    reading: ReadingSettings = WHAT_FITS,
    reasons: ReasonSettings = PLAIN,
    *,
    text: Sequence[str] = (),
    id: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    force: bool = False,
) -> Summary:
    """Decide all cases of files into the parts of a folder; parts that are there are not computed again.

    Args:
        given: a file, a folder or a glob of files of cases, on a disk or, as a URL, on object storage.
        out: the folder of parts, a path or a URL.
        text, id, delimiter, encoding: as `Cases`.
        force: begin anew, whatever parts the folder has.

    Raises:
        DataError: the input cannot be read, or is not what the folder's parts are of.
        OutputError: the folder is something else, or of another model or other settings, or another run writes to it.
        UserError: a storage or a cluster cannot be reached; a part was lost with its workers.
    """
    if settings.format == "parquet":
        require("pyarrow", "parquet", "--format parquet (--format jsonl needs nothing)")
    manifest = described_bundle(bundle)
    folder, patience = place(out), Patience(settings.patience)
    if lies_in(folder, given):
        raise OutputError(f"the output {out} lies in the input {given}, and would be read as cases; give another --out")
    cases = Cases(Path(given), manifest.recipe, tuple(text), id, delimiter, encoding)
    source = BatchInput(given, cases, patience)
    first_contact(lambda: folder.mkdir(parents=True, exist_ok=True), out)
    with alone_in(folder):
        options = {
            **asdict(reading),
            **asdict(reasons),
            **{"text": list(text), "id": id, "delimiter": delimiter, "encoding": encoding},
            **{name: getattr(settings, name) for name in ("format", "rows_per_part", "duplicates")},
        }
        job = _begun(folder, settings, source, options, manifest.sha256, force=force, patience=patience)
        parts = part_folder(folder, job)
        done = whole_parts(parts, job, settings.retry_failed)
        if done:
            say(f"{len(done)} of {len(job.parts)} parts are there already")
        if len(done) < len(job.parts):
            work = BatchWork(bundle, reading, reasons)
            uses_gpus = manifest.engine is None  # an export runs on processors
            crew: Crew = (
                RayCluster(work, settings.address, settings.workers, uses_gpus)
                if settings.ray
                else Workers(work, settings.workers, _gpus() if uses_gpus else 0)
            )
            done |= _computed(crew, source, job, parts, done, patience)
        return _checked(folder, job, parts, done, patience)


def _begun(
    folder: Path,
    settings: BatchSettings,
    source: BatchInput,
    options: dict[str, Any],
    model: str,
    *,
    force: bool,
    patience: Patience,
) -> BatchJob:
    """The job of a folder: the one that has begun there and goes on, or a new one."""
    job = read_job(folder)
    if job is not None and settings.resumes and not force:
        job.require_same(folder, __version__, model, options)
        job.require_input(folder, source.fingerprints())
        return job
    # A run that was killed while it wrote its first manifest has left half of it.
    present = [path for path in folder.iterdir() if path.name not in (*LOCKS, partial_name(JOB_FILE))]
    if job is not None and not force and any(path.name.startswith(PARTS) for path in present):
        done = len(whole_parts(part_folder(folder, job), job))
        raise OutputError(
            f"{folder} has {done} of {len(job.parts)} parts already; --resume goes on, --force begins anew"
        )
    if job is None and present:
        raise OutputError(f"{folder} has files, but no {JOB_FILE} of parts; give an empty or a new folder")
    job = BatchJob(__version__, model, options, source.read_through(settings.duplicates))
    for path in present:
        if path.name.lstrip(".").startswith(PARTS):  # whatever else somebody put there stays
            path.unlink()
    patience.insist(lambda: job.write(folder))
    return job


def _computed(
    crew: Crew, source: BatchInput, job: BatchJob, parts: PartFolder, done: Collection[int], patience: Patience
) -> dict[int, tuple[int, int]]:
    """Compute and write the parts that are not done; their rows with and without a decision.

    Raises:
        Reason2DecideError: a part was lost with its workers; all others are there.
    """
    lost: list[LostChunk] = []
    written = {}
    caution = Caution()
    before = sum(job.rows_of(number) for number in done)
    with ProgressBar("deciding", job.rows, "rows", done=before) as bar, crew:
        for chunk in crew.decide(source.chunks(job.files, job.size, done), bar.advance):
            if isinstance(chunk, LostChunk):
                lost.append(chunk)
                continue
            assert isinstance(chunk, DecidedChunk)
            written[chunk.number] = patience.insist(partial(parts.write, chunk.number, chunk.outcomes))
            caution.count(chunk.outcomes)
    if caution.deferred or caution.cut or caution.unsupported:
        warn(str(caution))
    if lost:
        first = min(lost, key=lambda chunk: chunk.number)
        raise Reason2DecideError(
            f"{len(lost)} of {len(job.parts)} parts could not be computed, the first is {first.number}: {first.why}; "
            "--resume tries them again, with fewer --workers each has more memory"
        )
    return written


def _checked(
    folder: Path, job: BatchJob, parts: PartFolder, done: Mapping[int, tuple[int, int]], patience: Patience
) -> Summary:
    """Check that every row of the input is in a part that is there, and write down how many rows went where.

    Raises:
        OutputError: a part was removed.
    """
    there = patience.insist(parts.there)
    for number in job.parts:
        if parts.decided_file(number).name not in there or sum(done[number]) != job.rows_of(number):
            raise OutputError(
                f"{parts.decided_file(number)} was removed while the others were written; --resume computes it again"
            )
    counted = [Part(parts.decided_file(number).name, *done[number]) for number in job.parts]
    decided, failed = sum(part.decided for part in counted), sum(part.failed for part in counted)
    summary = Summary(job.rows, decided, failed, counted)
    patience.insist(lambda: job.write(folder, asdict(summary)))
    return summary


def _gpus() -> int:
    """GPUs of this machine that torch can use."""
    return int(require("torch", "train").cuda.device_count())
