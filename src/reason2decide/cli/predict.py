"""`r2d predict`: cases into one file, or any number of them into a folder of parts."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

import typer

from reason2decide.batch.settings import STANDARD_BATCH, BatchSettings
from reason2decide.cli.models import Bundle, Force
from reason2decide.cli.options import comma_separated, with_options
from reason2decide.console import say, visible_json, warn
from reason2decide.errors import ConfigError, DataError
from reason2decide.model.reading import INPUT_TOKENS_HELP, LEAST_INPUT, LONG_TEXTS_HELP, LongTexts, ReadingSettings
from reason2decide.model.reasons import ReasonSettings

STANDARD = "-"
FILES = (".json", ".jsonl", ".ndjson", ".txt")  # ours: what the name of a file of predictions ends in


def register(app: typer.Typer) -> None:
    """Add this module's command to `app`."""
    app.command("predict")(predict_command)


@dataclass(frozen=True)
class CaseColumns:
    """How the cases' file is read, where that is not as in the import."""

    text: tuple[str, ...]
    id: str | None
    delimiter: str | None
    encoding: str | None


@with_options("reasons", ReasonSettings)
@with_options("batch", BatchSettings)
def predict_command(
    bundle: Bundle,
    cases: Annotated[
        str,
        typer.Argument(
            help="Cases: a file as the import read it, or - for standard input (JSON lines, or a text in each line). "
            "For parts also a folder, a quoted glob, or a URL such as s3://bucket/notes/*.parquet."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            help="File for the predictions, *.jsonl; - for standard output; any other name or URL: a folder of parts, "
            "with which a run can go on after any fault."
        ),
    ] = STANDARD,
    text: Annotated[
        str | None,
        typer.Option(metavar="COL[,COL...]", help="Columns of the text; default: those that the model was trained on."),
    ] = None,
    id_: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="COL", help="Column of ids; default: that of the import, or 'id', or line numbers."
        ),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(metavar="C", help="Delimiter of CSV cells, or 'tab'; default: that of the import.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of the file; default: that of the import.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad row; not with parts.")] = False,
    long_texts: Annotated[LongTexts, typer.Option(help=LONG_TEXTS_HELP)] = "decide",
    input_tokens: Annotated[int | None, typer.Option(help=INPUT_TOKENS_HELP, min=LEAST_INPUT)] = None,
    force: Force = False,
    *,
    batch: BatchSettings,
    reasons: ReasonSettings,
) -> None:
    """Decide and explain: a label, its probabilities and a rationale for each case, in their order."""
    reading = ReadingSettings(long_texts, input_tokens)
    columns = CaseColumns(comma_separated(text), id_, delimiter, encoding)
    if not _is_file(out):
        if strict:
            raise ConfigError("--strict is for a single file; with parts, bad rows are kept apart in errors-* files")
        if cases == STANDARD:
            raise ConfigError("standard input can be read only once; give a file, a folder or a URL of cases for parts")
        _into_parts(bundle, cases, out, columns, reading, reasons, batch, force=force)
        return
    if batch != STANDARD_BATCH:
        raise ConfigError(
            "--resume, --workers, --ray and what else is of parts need a folder of parts; give its name as --out"
        )
    if "://" in cases or "://" in out or (cases != STANDARD and Path(cases).is_dir()):
        raise ConfigError(f"folders and URLs are decided into parts, {out!r} is a single file; give a folder as --out")
    _into_file(bundle, Path(cases), Path(out), columns, reading, reasons, strict=strict, force=force)


def _is_file(out: str) -> bool:
    """Whether `--out` names a file, or standard output, rather than a folder of parts."""
    existing = "://" not in out and Path(out).exists() and not Path(out).is_dir()
    return out == STANDARD or existing or out.lower().endswith(FILES)


def _into_parts(
    bundle: Path,
    cases: str,
    out: str,
    columns: CaseColumns,
    reading: ReadingSettings,
    reasons: ReasonSettings,
    settings: BatchSettings,
    *,
    force: bool,
) -> None:
    from reason2decide.batch.run import decide_batch

    try:
        summary = decide_batch(
            bundle,
            cases,
            out,
            settings,
            reading,
            reasons,
            text=columns.text,
            id=columns.id,
            delimiter=columns.delimiter,
            encoding=columns.encoding,
            force=force,
        )
    except KeyboardInterrupt:
        warn(f"the parts in {out} are whole; the same command with --resume goes on")
        raise
    parts = f"{len(summary.parts)} part{'s' * (len(summary.parts) > 1)}"
    say(f"{summary.rows} rows read = {summary.decided} decided + {summary.failed} failed, in {parts}")
    if summary.failed:
        warn(f"{out}/errors-* say why rows have no decision ({summary.failed}); --retry-failed tries them again")


def _into_file(
    bundle: Path,
    cases: Path,
    out: Path,
    columns: CaseColumns,
    reading: ReadingSettings,
    reasons: ReasonSettings,
    *,
    strict: bool,
    force: bool,
) -> None:
    from reason2decide.data.cases import Cases
    from reason2decide.files import new_file, require_absent
    from reason2decide.model.manifest import described_bundle

    bad: list[str] = []
    unsupported = 0

    def on_bad(error: DataError) -> None:
        if strict:
            raise error
        bad.append(str(error))
        warn(f"{error}; skipped")

    to_stdout = out == Path(STANDARD)
    if not to_stdout:
        require_absent(out, force=force)
    recipe = described_bundle(bundle).recipe
    source = Cases(cases, recipe, columns.text, columns.id, columns.delimiter, columns.encoding)
    total = source.count()
    records = source.records(on_bad)
    first = next(records, None)  # a file that cannot be read is refused before a model is loaded
    if first is None:
        raise DataError(f"{cases} contains no case to decide on; expected at least one with a text")
    from itertools import chain

    from reason2decide.console import track
    from reason2decide.model.batches import BATCH_SIZE
    from reason2decide.model.predictor import READ_AHEAD, Predictor

    def decide(stream: TextIO) -> int:
        nonlocal unsupported
        decided = 0
        # Typed lines are answered one by one, a pipe in batches.
        read_ahead = READ_AHEAD if cases != Path(STANDARD) else 1 if sys.stdin.isatty() else BATCH_SIZE
        predictions = predictor.predict(chain([first], records), read_ahead=read_ahead, on_bad=on_bad)
        for prediction in track(predictions, "deciding", total, "cases"):
            stream.write(visible_json(json.dumps(prediction.to_json(), ensure_ascii=False)) + "\n")
            stream.flush()
            decided += 1
            unsupported += prediction.reason_supports is False
        return decided

    predictor = Predictor.load(bundle, reading, reasons)
    if predictor.caution:
        warn(predictor.caution)
    if to_stdout:
        decided = decide(sys.stdout)
    else:
        with new_file(out, force=force) as partial, partial.open("w", encoding="utf-8") as stream:
            decided = decide(stream)
    if predictor.cut_texts.cut:
        warn(
            f"{predictor.cut_texts} texts are longer than the model reads ({predictor.longest_prompt} tokens in a "
            "prompt): their rows have tokens_read below tokens. --long-texts windows reads on"
        )
    if predictor.writer.cut.cut:
        warn(
            f"{predictor.writer.cut} texts were read less far for the rationale than for the decision: its prompt "
            "has the label too"
        )
    if unsupported:
        then = "and were deferred" if reasons.check_reasons == "defer" else "their rows have reason_supports: false"
        warn(f"{unsupported} of {decided} reasons do not support their decision; {then}")
    say(f"{decided + len(bad)} rows read, {decided} decided, {len(bad)} skipped")
    if bad:
        warn(f"{len(bad)} bad rows were skipped; --strict stops at the first")
