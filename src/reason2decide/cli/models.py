"""`r2d train`, `out-of-fold`, `export` and `demo`."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from reason2decide.console import say, show, warn
from reason2decide.data.defaults import FOLDS
from reason2decide.errors import ConfigError, Interrupted, require
from reason2decide.files import means_full_disk

Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Bundle = Annotated[Path, typer.Argument(help="A bundle, which `r2d train` writes to RUN/bundle, or an export.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command("train")(train_command)
    app.command("out-of-fold")(out_of_fold_command)
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
            launched = " under the same launcher" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
            warn(f"the checkpoints of {run} are intact; resume{launched} with: {shlex.join(command)}")
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
