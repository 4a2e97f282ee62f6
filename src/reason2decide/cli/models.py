"""`r2d train`, `predict`, `export` and `demo`."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TextIO

import typer

from reason2decide.cli.options import comma_separated, with_options
from reason2decide.console import say, show, visible_json, warn
from reason2decide.data.defaults import FOLDS
from reason2decide.errors import ConfigError, DataError, Interrupted, require
from reason2decide.files import means_full_disk
from reason2decide.model.reading import INPUT_TOKENS_HELP, LEAST_INPUT, LONG_TEXTS_HELP, LongTexts, ReadingSettings
from reason2decide.model.reasons import ReasonSettings

Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Bundle = Annotated[Path, typer.Argument(help="A bundle, which `r2d train` writes to RUN/bundle, or an export.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command("train")(train_command)
    app.command("out-of-fold")(out_of_fold_command)
    app.command("predict")(predict_command)
    app.command("export")(export_command)
    app.command("demo")(demo_command)


def train_command(
    config: Annotated[Path | None, typer.Argument(help="The training configuration, in TOML.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default: runs/NAME, after the configuration file.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in steps.stage1=100.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print every key with its default and exit.")] = False,
    resume: Annotated[
        str | None, typer.Option(metavar="PATH|auto", help="Resume from a checkpoint of the run, or from its newest.")
    ] = None,
    first_stage_of: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Reuse the first stage of another run, if it is the same.")
    ] = None,
    force: Force = False,
) -> None:
    """Train a model as configured; the result is a bundle at RUN/bundle."""
    from reason2decide.training.config_file import describe_keys, load_config

    if explain:
        show(describe_keys())
        return
    if config is None:
        raise ConfigError("no configuration given; name a TOML file, or see every key with `r2d train --explain`")
    loaded = load_config(config, set_ or [], with_data=True)
    require_training()
    from reason2decide.training.run import train

    run = out if out is not None else Path("runs") / config.stem
    settings = [part for override in set_ or [] for part in ("--set", override)]
    with _saying_how_to_resume(run, ["r2d", "train", str(config), "--out", str(run), *settings, "--resume", "auto"]):
        bundle = train(loaded, run, resume=resume, first_stage_of=first_stage_of, force=force)
    say("next: " + shlex.join(["r2d", "evaluate", str(bundle), str(loaded.dataset), "--out", str(run / "results")]))


@contextlib.contextmanager
def _saying_how_to_resume(run: Path, command: list[str]) -> Iterator[None]:
    """If training stops with checkpoints written, say which command resumes it."""
    try:
        yield
    except Exception as error:
        stopped = isinstance(error, Interrupted) or means_full_disk(error)
        if stopped and next(run.glob("*/checkpoint-*"), None) is not None:
            warn(f"the checkpoints of {run} are intact; resume with: {shlex.join(command)}")
        raise


def out_of_fold_command(
    config: Annotated[Path, typer.Argument(help="The training configuration, in TOML.")],
    out: Annotated[Path, typer.Option(help="Folder for a model per fold, and for predictions.jsonl.")],
    folds: Annotated[
        int, typer.Option(min=2, help="Number of models; each predicts the part it has not seen.")
    ] = FOLDS,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in steps.stage1=100.")
    ] = None,
) -> None:
    """Predict every training record by a model that has not learnt from it; goes on where it was interrupted."""
    from reason2decide.training.config_file import load_config

    loaded = load_config(config, set_ or [], with_data=True)
    require_training()
    from reason2decide.workflows.out_of_fold import predict_out_of_fold

    show(str(predict_out_of_fold(loaded, out, folds)))


@with_options("reasons", ReasonSettings)
def predict_command(
    bundle: Bundle,
    cases: Annotated[
        Path,
        typer.Argument(
            help="Cases: a file as the import read it, or - for standard input: JSON lines, or a text in each line."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File for the predictions, as JSON lines; - for standard output.")] = Path(
        "-"
    ),
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
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad row.")] = False,
    long_texts: Annotated[LongTexts, typer.Option(help=LONG_TEXTS_HELP)] = "decide",
    input_tokens: Annotated[int | None, typer.Option(help=INPUT_TOKENS_HELP, min=LEAST_INPUT)] = None,
    force: Force = False,
    *,
    reasons: ReasonSettings,
) -> None:
    """Decide and explain: a label, its probabilities and a rationale for each case, in their order."""
    from reason2decide.data.cases import Cases
    from reason2decide.files import new_file, require_absent
    from reason2decide.model.manifest import described_bundle

    reading = ReadingSettings(long_texts, input_tokens)
    bad: list[str] = []
    unsupported = 0

    def on_bad(error: DataError) -> None:
        if strict:
            raise error
        bad.append(str(error))
        warn(f"{error}; skipped")

    to_stdout = out == Path("-")
    if not to_stdout:
        require_absent(out, force=force)
    recipe = described_bundle(bundle).recipe
    source = Cases(cases, recipe, comma_separated(text), id_, delimiter, encoding)
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
        read_ahead = READ_AHEAD if cases != Path("-") else 1 if sys.stdin.isatty() else BATCH_SIZE
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


def export_command(
    bundle: Bundle,
    out: Annotated[
        Path, typer.Option(help="Folder for the export; predict, evaluate and serve take it like a bundle.")
    ],
    weights: Annotated[
        str, typer.Option(help="Weight type: float32 (exact), int8-decoder, int8-blocks or int8 (smallest).")
    ] = "float32",
    dataset: Annotated[
        Path | None,
        typer.Option(help="Dataset the bundle was trained on, to measure parity; default: its recorded path."),
    ] = None,
    transformers_decision: Annotated[
        bool,
        typer.Option("--transformers-decision", help="Export for `transformers serve` instead: probabilities only."),
    ] = False,
    force: Force = False,
) -> None:
    """Export a bundle to ONNX Runtime, which serves it without torch, and measure how close it stays."""
    require_training()
    if transformers_decision:
        if weights != "float32" or dataset is not None:
            raise ConfigError("--transformers-decision keeps float32 weights: leave --weights and --dataset out")
        from reason2decide.export.transformers import export_transformers_decision

        export_transformers_decision(bundle, out, force=force)
        return
    require("onnx", "export")
    require("onnxruntime", "serve")
    from reason2decide.export.bundle import export_bundle

    parity = export_bundle(bundle, out, weights, dataset=dataset, force=force)
    show(
        f"parity on {parity.records} validation records: log-probabilities within {parity.log_prob_error:.2g}, "
        f"{parity.flips:.2%} of labels changed"
        + (f", macro-F1 {0 - parity.macro_f1_loss:+.4f}" if parity.macro_f1_loss is not None else "")
        + (f", BLEU {0 - parity.bleu_loss:+.2f}" if parity.bleu_loss is not None else "")
    )


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    force: Force = False,
) -> None:
    """Make synthetic calls, train, evaluate, report, and decide three calls on screen: about twenty minutes."""
    require_training()
    require("matplotlib", "report")
    from reason2decide.workflows.demo import demo

    demo(out, force=force)


def require_training() -> None:
    """Raise `MissingExtraError` if a package that runs models is not installed."""
    for module in ("torch", "transformers", "accelerate"):
        require(module, "train")
