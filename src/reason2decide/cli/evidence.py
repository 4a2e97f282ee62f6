"""`r2d evaluate` and `r2d compare`: how good a system is, and whether another is better."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reason2decide.cli.models import Force, require_training
from reason2decide.cli.options import with_options
from reason2decide.console import show, warn
from reason2decide.errors import ConfigError, OutputError, require
from reason2decide.evaluation.settings import RESAMPLES, Settings, load_settings, require_unasked

if TYPE_CHECKING:
    from reason2decide.evaluation.comparison import Comparison, SystemValue
    from reason2decide.evaluation.results import MetricValue, Results


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command("evaluate")(evaluate_command)
    app.command("compare")(compare_command)


def _from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of the options from a settings file; options on the command line still win."""
    if path is not None:
        settings = load_settings(path)
        values: dict[str, Any] = {field.name: getattr(settings, field.name) for field in fields(settings)}
        context.default_map = {**(context.default_map or {}), **values}
    return path


@with_options("settings", Settings)
def evaluate_command(
    context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="[BUNDLE] DATASET", help="A bundle (or --predictions, or --parts), and a dataset."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for results.json, report.html and the rest.")],
    settings: Settings,
    predictions: Annotated[
        Path | None, typer.Option(help="Measure this predictions.jsonl, from any system, instead of a bundle.")
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Measure the parts that `r2d predict --out FOLDER` wrote, of any number of rows, instead of a bundle.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="With --parts: the bundle or export that decided, for its calibration."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="With --parts: processes that measure; default: by cores and memory.")
    ] = None,
    validation_predictions: Annotated[
        Path | None,
        typer.Option(help="With --predictions: the same system's predictions on validation, for calibration."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="With --predictions or --parts: name of the system.")] = None,
    card_answers: Annotated[
        Path | None,
        typer.Option(help="With a bundle, or --model: TOML file of what the model card cannot know by itself."),
    ] = None,
    settings_file: Annotated[
        Path | None,
        typer.Option(
            "--settings",
            metavar="FILE",
            is_eager=True,
            callback=_from_file,
            help="TOML file of the options below; options on the command line win.",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Measure a bundle, or any system's predictions, on a split: metrics with 95 % intervals, and a report."""
    _require_fitting(paths, predictions, parts, validation_predictions, system)
    if parts is None and (workers is not None or model is not None):
        raise ConfigError("--model and --workers go with --parts; without, the bundle is named before the dataset")
    if predictions is not None or parts is not None:
        require_unasked(_typed(context))
        if card_answers is not None and model is None:
            raise ConfigError("--card-answers goes with a bundle, or with --parts and --model: no model, no model card")
    require("matplotlib", "report")
    from reason2decide.report.source_attributes import read_answers
    from reason2decide.workflows.evaluate import evaluate_bundle, evaluate_file
    from reason2decide.workflows.evaluate_parts import evaluate_parts

    answers = read_answers(card_answers) if card_answers is not None else {}
    if parts is not None:
        results = evaluate_parts(
            parts,
            paths[0],
            out,
            settings,
            bundle=model,
            system=system,
            card_answers=answers,
            workers=workers or 0,
            force=force,
        )
    elif predictions is not None:
        results = evaluate_file(
            predictions,
            paths[0],
            out,
            settings,
            system=system,
            validation_file=validation_predictions,
            force=force,
        )
    else:
        results = evaluate_bundle(paths[0], paths[1], out, settings, card_answers=answers, force=force)
    print_results(results)


def _require_fitting(
    paths: list[Path], predictions: Path | None, parts: str | None, validation: Path | None, system: str | None
) -> None:
    """Raise `ConfigError` if the paths and options of `r2d evaluate` do not go together."""
    if predictions is not None and parts is not None:
        raise ConfigError("--predictions and --parts are two forms of decisions; give one of them")
    decided = "--predictions FILE" if predictions is not None else "--parts FOLDER" if parts is not None else None
    if len(paths) != (1 if decided else 2):
        expected = f"DATASET and {decided}" if decided else "BUNDLE DATASET, or DATASET and --predictions or --parts"
        raise ConfigError(f"{len(paths)} paths were given ({', '.join(map(str, paths))}); expected {expected}")
    if predictions is None and validation is not None:
        raise ConfigError("--validation-predictions goes with --predictions; a bundle has its own calibration")
    if predictions is None and parts is None and system is not None:
        raise ConfigError("--system goes with --predictions or --parts; a bundle has its own name")


def _typed(context: typer.Context) -> dict[str, str]:
    """The options that stand on the command line: parameter -> as it is written."""
    sources = {own.name: context.get_parameter_source(own.name) for own in context.command.params if own.name}
    typed = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    return {own.name: own.opts[0] for own in context.command.params if own.name in typed}


def compare_command(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="EXPERIMENT.toml | RESULTS RESULTS...", help="An experiment, or results folders."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the comparison, and for the cells of an experiment.")],
    reference: Annotated[
        str | None, typer.Option(help="With results folders: the one to compare with; default: the first.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in training.base=tiny.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of cells to run at the same time.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run and how long it would take.")
    ] = False,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples for the intervals.")] = RESAMPLES,
    primary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC",
            help="Metric to test, with p values adjusted for all such tests; repeatable. The others are exploratory. "
            "Default: macro-F1, under-triage where labels are ordinal, consistency of the reasons.",
        ),
    ] = None,
) -> None:
    """Run an experiment's cells and compare them, or compare existing results: differences, intervals, tests."""
    from reason2decide.evaluation.comparison import compare, load_system, require_metrics
    from reason2decide.workflows.experiment import load_experiment

    require("matplotlib", "report")
    require_metrics(primary or ())
    if len(paths) == 1 and not paths[0].is_dir():
        if reference is not None:
            raise ConfigError("--reference goes with results folders; an experiment names its own `reference`")
        experiment = load_experiment(paths[0], set_ or [])
        experiment = replace(experiment, primary=tuple(primary)) if primary else experiment
        from reason2decide.workflows.cells import describe, run_experiment

        if dry_run:
            show(describe(experiment, out))
            return
        require_training()
        for comparison in run_experiment(experiment, out, jobs=jobs, resamples=resamples):
            _print_comparison(comparison)
        return
    if set_ or dry_run or jobs > 1:
        raise ConfigError("--set, --jobs and --dry-run go with an experiment file; these are results folders")
    from reason2decide.workflows.compare import write_comparison

    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give the path of a folder for the comparison")
    systems = [load_system(str(path), [path]) for path in paths]
    named = str(Path(reference)) if reference else str(paths[0])  # "results/", as a shell completes it, is "results"
    comparison = compare(systems, named, primary=primary or (), resamples=resamples)
    write_comparison(comparison, out, "Comparison")
    _print_comparison(comparison)


def _print_comparison(comparison: Comparison) -> None:
    """A sentence for each system, then the means by group; intervals, tests and the rest are in the files."""
    from reason2decide.report.metric_views import arrow, group_names
    from reason2decide.report.verdict import twins, verdicts

    systems = [comparison.reference, *(name for name in comparison.values if name != comparison.reference)]
    ends = [Path(name).name for name in systems]  # of folders, where these tell them apart
    short = dict(zip(systems, ends if len(set(ends)) == len(ends) else systems, strict=True))
    for system, sentence in verdicts(comparison).items():
        show(f"{short[system]}: {sentence} (against {short[comparison.reference]})")
    same = twins(comparison)
    seeds = [value.seeds for values in comparison.values.values() for value in values.values()]
    groups = group_names(same)
    width = max(*(len(name) + 4 for name in same), *map(len, groups))
    widths = [max(len(short[name]), 6 if max(map(len, seeds)) == 1 else 13) for name in systems]
    for group, names in groups.items():
        header = "  ".join(short[name].rjust(own) for name, own in zip(systems, widths, strict=True))
        show(f"{group:<{width}}  {header}")
        for name in names:
            values = [comparison.values[system].get(name) for system in systems]
            cells = ["-" if value is None else _mean(name, value) for value in values]
            row = "  ".join(cell.rjust(own) for cell, own in zip(cells, widths, strict=True))
            twin = f"  (also {', '.join(same[name])})" if same[name] else ""
            show(f"{f'  {name} {arrow(name)}':<{width}}  {row}{twin}")


def _mean(name: str, value: SystemValue) -> str:
    """A mean, with the standard deviation over seeds if there are several."""
    from reason2decide.report.metric_views import number

    return number(name, value.mean) + ("" if value.spread is None else f" ±{number(name, value.spread)}")


def print_results(results: Results) -> None:
    """The warnings, then every computed metric by group, then baselines and notes."""
    from reason2decide.evaluation.baselines import TITLES
    from reason2decide.report.metric_views import arrow, group_names, number

    for warning in results.warnings:
        warn(warning)
    computed = {name: metric for name, metric in results.metrics.items() if metric.value is not None}
    width = max(map(len, computed), default=0) + 2
    for group, names in group_names(computed).items():
        show(group)
        for name in names:
            metric = computed[name]
            assert metric.value is not None
            show(f"  {f'{name} {arrow(name)}':<{width}}  {number(name, metric.value)}  ({interval_of(name, metric)})")
    for baseline in results.baselines:
        show(f"Difference from {TITLES[baseline.name]}" + (f": {baseline.reason}" if baseline.reason else ""))
        for name, gap in baseline.differences.items():
            shown = [number(name, part, signed=True) for part in (gap.difference, gap.low, gap.high)]
            show(f"  {f'{name} {arrow(name)}':<{width}}  {shown[0]}  (95 % interval {shown[1]} to {shown[2]})")
    for note in results.notes:
        show(f"note: {note}")


def interval_of(name: str, metric: MetricValue) -> str:
    """The interval of a metric's value, and the number of records, in words."""
    from reason2decide.report.metric_views import number

    if metric.low is None or metric.high is None:
        return f"no interval, n = {metric.n}"
    return f"95 % interval {number(name, metric.low)} to {number(name, metric.high)}, n = {metric.n}"
