"""`r2d evaluate` and `r2d compare`: how good a system is, and whether another is better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reason2decide.cli.models import Force, require_training
from reason2decide.errors import ConfigError, require

if TYPE_CHECKING:
    from reason2decide.evaluation.comparison import Comparison
    from reason2decide.evaluation.results import Results

Resamples = Annotated[int, typer.Option(min=1, help="Bootstrap resamples for the intervals.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command("evaluate")(evaluate_command)
    app.command("compare")(compare_command)


def evaluate_command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="[BUNDLE] DATASET", help="A bundle (or --predictions), and a dataset.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for results.json, report.html and the rest.")],
    predictions: Annotated[
        Path | None, typer.Option(help="Measure this predictions.jsonl, whoever made it, in place of a bundle.")
    ] = None,
    validation_predictions: Annotated[
        Path | None, typer.Option(help="With --predictions: the same system on validation, to calibrate by.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="With --predictions: the name of the system.")] = None,
    split: Annotated[str, typer.Option(help="Which split to decide on.")] = "test",
    rationale_source: Annotated[
        str | None, typer.Option(help="Whose rationales to compare with; default: those last trained on.")
    ] = None,
    slice_: Annotated[
        list[str] | None,
        typer.Option("--slice", metavar="COLUMN[:EDGE,...]", help="Every metric by a metadata column, or `length`."),
    ] = None,
    costs: Annotated[
        Path | None, typer.Option(help="Costs of mistakes: a CSV with gold labels down, predicted ones across.")
    ] = None,
    error_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Wanted among cases that are not deferred; chosen on validation.")
    ] = 0.1,
    miscoverage: Annotated[
        float, typer.Option(min=0, max=1, help="Share of prediction sets that may miss the gold label.")
    ] = 0.1,
    bertscore_encoder: Annotated[
        str | None, typer.Option(help="For BERTScore: an encoder's folder or hub name, or `minilm`.")
    ] = None,
    bertscore_layer: Annotated[int | None, typer.Option(min=0, help="Its layer; default: at 3/4 of its depth.")] = None,
    bertscore_baseline: Annotated[
        Path | None, typer.Option(help="A baseline file in bert-score's format, to rescale by.")
    ] = None,
    bertscore_idf: Annotated[
        bool, typer.Option("--bertscore-idf", help="Weigh BERTScore's tokens by how rare they are.")
    ] = False,
    probed: Annotated[
        int, typer.Option(min=0, help="Of how many records a bundle is asked more about its rationales.")
    ] = 500,
    card_answers: Annotated[
        Path | None, typer.Option(help="With a bundle: what the model card cannot know by itself, in TOML.")
    ] = None,
    interval: Annotated[str, typer.Option(help="percentile or bca.")] = "percentile",
    resamples: Resamples = 1000,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Measure a bundle, or anybody's predictions, on a split: metrics with 95 % intervals, and a report to read."""
    wanted = 1 if predictions is not None else 2
    if len(paths) != wanted:
        expected = "DATASET and --predictions FILE" if wanted == 1 else "BUNDLE DATASET, or --predictions FILE DATASET"
        raise ConfigError(f"{len(paths)} paths were given ({', '.join(map(str, paths))}); expected {expected}")
    if predictions is None and (validation_predictions is not None or system is not None):
        raise ConfigError("--validation-predictions and --system go with --predictions; a bundle has both of its own")
    if interval not in ("percentile", "bca"):
        raise ConfigError(f"--interval {interval!r}: expected percentile or bca")
    require("matplotlib", "report")
    from reason2decide.data.records import Dataset
    from reason2decide.evaluation.measure import Settings
    from reason2decide.evaluation.metrics import BertScore
    from reason2decide.evaluation.metrics.ordinal import read_costs
    from reason2decide.evaluation.slices import Column
    from reason2decide.report.model_card import read_answers

    method: Literal["percentile", "bca"] = "bca" if interval == "bca" else "percentile"
    settings = Settings(
        rationale_source=rationale_source,
        resamples=resamples,
        seed=seed,
        interval=method,
        slices=tuple(Column.parse(text) for text in slice_ or ()),
        error_rate=error_rate,
        miscoverage=miscoverage,
        costs=read_costs(costs, Dataset.open(paths[-1]).info.labels) if costs is not None else None,
        bertscore=BertScore(bertscore_encoder, layer=bertscore_layer, idf=bertscore_idf, baseline=bertscore_baseline),
    )
    from reason2decide.workflows.evaluate import evaluate_bundle, evaluate_predictions

    if predictions is not None:
        results = evaluate_predictions(
            predictions,
            paths[0],
            out,
            settings,
            split=split,
            system=system,
            validation_predictions=validation_predictions,
            force=force,
        )
    else:
        answers = read_answers(card_answers) if card_answers is not None else {}
        results = evaluate_bundle(
            paths[0], paths[1], out, settings, split=split, probed=probed, card_answers=answers, force=force
        )
    print_results(results)


def compare_command(
    paths: Annotated[
        list[Path], typer.Argument(metavar="EXPERIMENT.toml | RESULTS RESULTS...", help="What to compare.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the comparison, and for the cells of an experiment.")],
    reference: Annotated[
        str | None, typer.Option(help="With results folders: the one to compare with; default: the first.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in training.base=tiny.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at work at the same time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run and what it costs.")] = False,
    resamples: Resamples = 1000,
) -> None:
    """Run an experiment's cells and compare them, or compare results that are there: differences, intervals, tests."""
    from reason2decide.workflows.experiment import load_experiment

    require("matplotlib", "report")
    if len(paths) == 1 and not paths[0].is_dir():
        experiment = load_experiment(paths[0], set_ or [])
        from reason2decide.workflows.cells import describe, run_experiment

        if dry_run:
            typer.echo(describe(experiment, out))
            return
        require_training()
        for comparison in run_experiment(experiment, out, jobs=jobs, resamples=resamples):
            _print_comparison(comparison)
        return
    if set_ or dry_run or jobs > 1:
        raise ConfigError("--set, --jobs and --dry-run go with an experiment file; these are results folders")
    from reason2decide.evaluation.comparison import load_system
    from reason2decide.workflows.compare import write_comparison

    systems = [load_system(str(path), [path]) for path in paths]
    _print_comparison(write_comparison(systems, reference or str(paths[0]), out, "Comparison", resamples=resamples))


def _print_comparison(comparison: Comparison) -> None:
    for system, values in comparison.values.items():
        for name, value in values.items():
            spread = "" if value.spread is None else f", sd {value.spread:.4f} over {len(value.seeds)} seeds"
            interval = f"(95 % interval {value.low:.4f} to {value.high:.4f}{spread})"
            typer.echo(f"{system}  {name}  {value.mean:.4f}  {interval}")
    for own in comparison.differences:
        typer.echo(
            f"{own.system} - {comparison.reference}  {own.metric}  {own.difference:+.4f}  "
            f"({own.low:+.4f} to {own.high:+.4f}; p = {own.p_randomization:.4f}, Holm {own.p_holm:.4f})"
        )


def print_results(results: Results) -> None:
    width = max(len(name) for name in results.metrics)
    for name, metric in results.metrics.items():
        if metric.value is not None:
            interval = f"(95 % interval {metric.low:.4f} to {metric.high:.4f}, n = {metric.n})"
            typer.echo(f"{name:<{width}} {metric.value:.4f}  {interval}")
    for note in results.notes:
        typer.echo(f"note: {note}")
