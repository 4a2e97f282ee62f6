"""`r2d data ...`: import, check and synthesize datasets."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reason2decide.cli.check_report import LABELS_SHOWN, print_check
from reason2decide.cli.options import comma_separated
from reason2decide.console import say, visible_json, warn
from reason2decide.data.defaults import CALL_COUNTS, LABEL_NOISE
from reason2decide.errors import UserError

if TYPE_CHECKING:
    from reason2decide.data.dataset_folder import DatasetFolder
    from reason2decide.data.records import LabelSet
    from reason2decide.data.sources.table_records import Columns
    from reason2decide.data.sources.writing import Imported

data_app = typer.Typer(help="Import, check and synthesize datasets.", no_args_is_help=True)
MANY_LABELS = 200  # ours: the largest common label set that scoring is tested with

import_app = typer.Typer(help="Import records as a dataset folder.", no_args_is_help=True)
data_app.add_typer(import_app, name="import")

Out = Annotated[Path, typer.Option("--out", help="Dataset folder to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed for dividing records into splits.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of the dataset; default: the folder's name.")]
Split = Annotated[
    str | None, typer.Option("--split", help="Shares of train, validation and test; default: 0.8,0.1,0.1.")
]

Labels = Annotated[
    str | None, typer.Option("--labels", metavar="L1,L2,...", help="Labels in order; default: those found, sorted.")
]
Ordinal = Annotated[bool, typer.Option("--ordinal", help="Treat --labels as ordered levels.")]
Urgent = Annotated[str | None, typer.Option("--urgent", metavar="first|last", help="Most urgent end of --labels.")]


@import_app.command("table")
def import_table_command(
    files: Annotated[list[Path], typer.Argument(metavar="IN...", help="CSV, TSV, JSONL or Parquet files.")],
    out: Out,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="COL[,COL...]", help="Text column; several are joined under their names."),
    ] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="COL", help="Column with the gold label.")] = None,
    rationale: Annotated[
        list[str] | None,
        typer.Option(
            "--rationale", metavar="SOURCE=COL", help="Rationale column and the name of its source; repeatable."
        ),
    ] = None,
    contrast: Annotated[
        list[str] | None,
        typer.Option(
            "--contrast",
            metavar="SOURCE[/LABEL]=COL",
            help="Column with rationales for other labels than the gold one: an object of label -> text, or with LABEL "
            "the text for that label; repeatable.",
        ),
    ] = None,
    id_: Annotated[
        str | None, typer.Option("--id", metavar="COL", help="Column with unique ids; default: digests of the text.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="COL", help="Column with the patient or article; a group stays in one split."),
    ] = None,
    choices: Annotated[
        str | None,
        typer.Option(
            "--choices", metavar="COL", help='Column with each record\'s choices: a list, an object, or "a|b|c".'
        ),
    ] = None,
    choices_in_text: Annotated[
        bool,
        typer.Option("--choices-in-text", help="Take the choices out of the text: 'A. ...', '1- ...' or '(a) ...'."),
    ] = False,
    labels: Labels = None,
    ordinal: Ordinal = False,
    urgent: Urgent = None,
    meta: Annotated[
        str | None, typer.Option("--meta", metavar="COL[,COL...]", help="Other columns to keep with each record.")
    ] = None,
    split_column: Annotated[
        str | None,
        typer.Option("--split-column", metavar="COL", help="Column with train, validation (val, dev) or test."),
    ] = None,
    split: Split = None,
    seed: Seed = 0,
    delimiter: Annotated[
        str | None,
        typer.Option("--delimiter", metavar="C", help="Delimiter of CSV cells, or 'tab'; default: the header's."),
    ] = None,
    encoding: Annotated[
        str, typer.Option("--encoding", metavar="E", help="Encoding of the files, such as cp1252 or cp1254.")
    ] = "utf-8",
    missing: Annotated[
        str | None,
        typer.Option("--missing", metavar="C1[,C2...]", help="Cells that count as empty, such as '#N/A,???'."),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out rows that cannot be used, and write them to DIR/skipped.jsonl."),
    ] = False,
    name: Name = None,
    force: Force = False,
) -> None:
    """Import CSV, TSV, JSONL or Parquet files; default columns: question, label, rationale."""
    from reason2decide.data.sources.table import import_table

    if split and split_column:
        raise UserError("--split and --split-column were given; give one of the two")
    columns = None
    named = {"--id": id_, "--group": group, "--choices": choices, "--meta": meta, "--split-column": split_column}
    named |= {"--rationale": ",".join(rationale or ()), "--contrast": ",".join(contrast or ())}
    if text and label:
        columns = _columns(text, label, rationale or [], contrast or [], id_, group, choices, split_column, meta)
    elif text or label or any(named.values()):
        given = [option for option, value in {"--text": text, "--label": label, **named}.items() if value]
        raise UserError(f"{', '.join(given)} needs --text and --label; give both, or no column options at all")
    imported = import_table(
        files,
        out,
        columns,
        labels=_label_set(labels, ordinal, urgent),
        choices_in_text=choices_in_text,
        shares=shares_of(split),
        seed=seed,
        delimiter=delimiter,
        encoding=encoding,
        missing=comma_separated(missing),
        skip_bad=skip_bad,
        name=name,
        force=force,
    )
    _summarize(imported)


@import_app.command("pubmedqa")
def import_pubmedqa_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="ori_pqal.json, or files of the same format.")],
    out: Annotated[Path | None, typer.Option("--out", help="Dataset folder to write.")] = None,
    test_ids: Annotated[
        Path | None, typer.Option("--test-ids", help="Official test questions: test_ground_truth.json.")
    ] = None,
    unlabelled_out: Annotated[
        Path | None, typer.Option("--unlabelled-out", help="Write questions without a decision to this .jsonl file.")
    ] = None,
    split: Split = None,
    seed: Seed = 0,
    name: Name = None,
    force: Force = False,
) -> None:
    """Import PubMedQA: yes, no or maybe from a question and an abstract; the conclusion is the rationale."""
    from reason2decide.data.sources.pubmedqa import import_pubmedqa

    if split and test_ids:
        raise UserError(
            "--split and --test-ids were both given, but official splits have fixed shares; give one of the two"
        )
    imported = import_pubmedqa(
        files,
        out,
        test_ids=test_ids,
        unlabelled_out=unlabelled_out,
        shares=shares_of(split),
        seed=seed,
        name=name,
        force=force,
    )
    _summarize(imported)


@import_app.command("label-studio")
def import_label_studio_command(
    file: Annotated[Path, typer.Argument(metavar="IN", help="JSON export of a Label Studio project.")],
    out: Out,
    labels: Labels = None,
    ordinal: Ordinal = False,
    urgent: Urgent = None,
    split: Split = None,
    seed: Seed = 0,
    name: Name = None,
    force: Force = False,
) -> None:
    """Import decisions and reasons that people gave in Label Studio."""
    from reason2decide.data.sources.label_studio import import_label_studio

    given = _label_set(labels, ordinal, urgent)
    _summarize(import_label_studio(file, out, labels=given, shares=shares_of(split), seed=seed, name=name, force=force))


@import_app.command("bioasq")
def import_bioasq_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="BioASQ Task B files, training or golden.")],
    out: Out,
    split: Split = None,
    seed: Seed = 0,
    name: Name = None,
    force: Force = False,
) -> None:
    """Import the yes/no questions of BioASQ Task B; the ideal answer is the rationale."""
    from reason2decide.data.sources.bioasq import import_bioasq

    _summarize(import_bioasq(files, out, shares=shares_of(split), seed=seed, name=name, force=force))


@data_app.command("check")
def check_command(
    dataset: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset folder.")],
    base: Annotated[
        str | None, typer.Option("--base", metavar="NAME_OR_PATH", help="Measure lengths in this base's tokens.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Report counts, balance, lengths and duplicates; exit with 1 if anything would make a result invalid."""
    from reason2decide.data.check import check_dataset

    if base is None:
        report = check_dataset(dataset)
    else:
        from reason2decide.data.unread_characters import UnreadCharacters
        from reason2decide.model.hub import TokenCounter, load_tokenizer
        from reason2decide.model.prompt_encoder import Lengths

        tokenizer = load_tokenizer(base)
        unread = UnreadCharacters(tokenizer)
        report = check_dataset(
            dataset,
            count=TokenCounter(tokenizer),
            unit=f"tokens of {base}",
            unread=unread,
            label_limit=Lengths().label,
        )
    if as_json:
        typer.echo(visible_json(json.dumps(report.to_json(), ensure_ascii=False, indent=1)))
    else:
        print_check(report)
    if not report.ok:
        raise typer.Exit(1)


@data_app.command("fix")
def fix_command(
    dataset: Annotated[Path, typer.Argument(metavar="DIR", help="Dataset folder.")],
    out: Out,
    duplicates: Annotated[
        bool,
        typer.Option("--duplicates", help="Leave out of train, then of validation, what a later evaluation split has."),
    ] = False,
    contradictions: Annotated[
        bool, typer.Option("--contradictions", help="Leave out all records of a text that has several labels.")
    ] = False,
    merge: Annotated[
        list[str] | None,
        typer.Option("--merge", metavar="OLD=NEW", help="Write the label OLD as NEW; repeatable."),
    ] = None,
    leaks: Annotated[
        Literal["drop", "mask"] | None,
        typer.Option(help="Drop records whose text states their label, or mask such labels."),
    ] = None,
    force: Force = False,
) -> None:
    """Write a copy of a dataset without the problems that `check` reports, and list the changes."""
    from reason2decide.data.fix import Fixes, fix_dataset

    labels = _pairs("--merge", merge or [], "OLD=NEW, such as 'No=no'")
    written, done = fix_dataset(
        dataset,
        out,
        Fixes(duplicates, contradictions, labels, leaks),
        force=force,
    )
    for what, counts in done.items():
        verb = "mended" if what.startswith("with") else "left out"
        say(f"{verb} {sum(counts.values())} records {what}: {', '.join(f'{s} {n}' for s, n in counts.items())}")
    if not done:
        say("nothing was found to mend")
    if leaks == "mask":
        say("the same labels should not stand in texts at use: this model has never seen them")
    _say_dataset(written)


@data_app.command("synthesize")
def synthesize_command(
    out: Out,
    train: Annotated[int, typer.Option(help="Number of training calls.")] = CALL_COUNTS["train"],
    validation: Annotated[int, typer.Option(help="Number of validation calls.")] = CALL_COUNTS["validation"],
    test: Annotated[int, typer.Option(help="Number of test calls.")] = CALL_COUNTS["test"],
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same bytes.")] = 0,
    label_noise: Annotated[float, typer.Option(help="Share of labels moved to an adjacent one.")] = LABEL_NOISE,
    force: Force = False,
) -> None:
    """Write synthetic nurse-line calls: made up to test software, not clinical advice."""
    from reason2decide.data.sources.synthetic_calls import SYNTHETIC_NOTICE, synthesize_calls
    from reason2decide.data.sources.writing import Imported

    dataset = synthesize_calls(
        out, train=train, validation=validation, test=test, seed=seed, label_noise=label_noise, force=force
    )
    _summarize(Imported(dataset, (SYNTHETIC_NOTICE,)))


def _pairs(option: str, given: Sequence[str], expected: str) -> dict[str, str]:
    """The values of an option as NAME -> COL.

    Raises:
        UserError: one is of another form, or a name occurs twice.
    """
    found: dict[str, str] = {}
    for value in given:
        name, mark, column = (part.strip() for part in value.partition("="))
        if not (mark and name and column):
            raise UserError(f"{option} is {value!r}; expected {expected}")
        if name in found:
            raise UserError(f"{option} names {name!r} twice; give it one column")
        found[name] = column
    return found


def _columns(
    text: str,
    label: str,
    rationales: Sequence[str],
    contrasts: Sequence[str],
    id_: str | None,
    group: str | None,
    choices: str | None,
    split: str | None,
    meta: str | None,
) -> Columns:
    from reason2decide.data.sources.table_records import Columns

    sources = _pairs("--rationale", rationales, "SOURCE=COL, such as nurse=explanation")
    of_labels = _pairs("--contrast", contrasts, "SOURCE=COL or SOURCE/LABEL=COL, such as nurse/home care=why_home")
    for name in of_labels:
        if name.partition("/")[0] not in sources:
            raise UserError(
                f"--contrast names the source {name.partition('/')[0]!r}, for which no --rationale is given; contrasts "
                "stand beside the rationales of their source"
            )
    return Columns(
        text=comma_separated(text),
        label=label,
        rationales=sources,
        contrasts=of_labels,
        id=id_,
        group=group,
        choices=choices,
        split=split,
        meta=comma_separated(meta),
    )


def _label_set(labels: str | None, ordinal: bool, urgent: str | None) -> LabelSet | None:
    from reason2decide.data.records import LabelSet

    if labels is None:
        if ordinal or urgent:
            raise UserError("--ordinal and --urgent need ordered labels; list them with --labels")
        return None
    if urgent not in (None, "first", "last"):
        raise UserError(f"--urgent is {urgent!r}; expected first or last")
    return LabelSet(comma_separated(labels), ordinal, urgent)  # type: ignore[arg-type]


def shares_of(split: str | None) -> dict[str, float]:
    """The shares that an option asks for, or the default ones."""
    from reason2decide.data.defaults import SHARES
    from reason2decide.data.sources.splitting import parse_shares

    return parse_shares(split) if split is not None else SHARES


def _summarize(imported: Imported) -> None:
    for note in imported.notes:
        say(note)
    if imported.dataset is not None:
        _say_dataset(imported.dataset)


def _say_dataset(dataset: DatasetFolder) -> None:
    counts = ", ".join(f"{split} {len(dataset.split(split))}" for split in dataset.hashes)
    labels = dataset.info.labels
    shown = "each record's own choices" if labels.is_open else ", ".join(labels.values[:LABELS_SHOWN])
    if len(labels.values) > LABELS_SHOWN:
        shown += f", ... ({len(labels.values)} in all)"
    if labels.ordinal:
        shown += " (ordinal" + (f", the {labels.urgent} the most urgent)" if labels.urgent else ")")
    say(f"wrote {dataset.path}: {counts}")
    say(f"labels: {shown}")
    say(f"rationale sources: {', '.join(dataset.info.rationale_sources) or 'none'}")
    say(f"next: r2d data check {shlex.quote(str(dataset.path))}")
    if len(labels.values) > MANY_LABELS:
        warn(
            f"every record has {len(labels.values)} labels to choose from, which is many; if each record has its own "
            "choices, import them with --choices or --choices-in-text"
        )
