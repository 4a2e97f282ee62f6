"""`r2d judge`: language models score a system's rationales, with their agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from reason2decide.cli.llm import LlmOptions, connect
from reason2decide.cli.models import Force
from reason2decide.cli.options import with_options
from reason2decide.console import show
from reason2decide.errors import ConfigError
from reason2decide.evaluation.settings import DEFAULT_SETTINGS, RESAMPLES

if TYPE_CHECKING:
    from reason2decide.llm.client.client import Client
    from reason2decide.llm.client.endpoint import Dialect
    from reason2decide.llm.judge.pointwise import Judge


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command("judge")(with_options("options", LlmOptions)(judge_command))


def _print_rubric(wanted: bool) -> None:
    if wanted:
        from reason2decide.llm.judge.rubric import load_rubric

        show(load_rubric().in_words())
        raise typer.Exit


def judge_command(
    predictions: Annotated[Path, typer.Argument(help="File predictions.jsonl with rationales.")],
    dataset: Annotated[Path, typer.Option(help="Dataset the predictions were made on.")],
    out: Annotated[Path, typer.Option(help="Folder for judge.json and judgements.jsonl.")],
    options: LlmOptions,
    dialect: Annotated[
        str, typer.Option(help="Protocol: chat, or systemone or decisions for decision models.")
    ] = "chat",
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL,MODEL[,DIALECT[,KEY_VARIABLE]]",
            help="Additional judge; repeatable; limits and prices are shared.",
        ),
    ] = None,
    criteria: Annotated[
        list[str] | None,
        typer.Option("--criteria", metavar="NAME", help="Criterion of the rubric; repeatable; default: all."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Compare with these predictions, in both orders, instead of scoring.")
    ] = None,
    human: Annotated[
        Path | None, typer.Option(help="Human scores (id, criterion, score; CSV or .jsonl) to compare the judges with.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split the predictions were made on.")] = DEFAULT_SETTINGS.split,
    records: Annotated[
        int | None,
        typer.Option(min=1, help="Number of records to judge, chosen by the hash of their ids; default: all."),
    ] = None,
    rationale_source: Annotated[
        str | None,
        typer.Option(help="Source of the gold rationales; default: the dataset's, if it has only one."),
    ] = None,
    rubric: Annotated[
        bool, typer.Option("--rubric", callback=_print_rubric, is_eager=True, help="Print the rubric and exit.")
    ] = False,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples for the intervals.")] = RESAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = DEFAULT_SETTINGS.seed,
    force: Force = False,
) -> None:
    """Score rationales by a rubric with language models, or compare those of two systems, and report agreement."""
    from reason2decide.llm.judge.judgements import JudgedSplit
    from reason2decide.llm.judge.pairwise import Pairwise
    from reason2decide.llm.judge.pointwise import Pointwise
    from reason2decide.llm.judge.rubric import load_rubric
    from reason2decide.llm.judge.run import compare_predictions, judge_predictions
    from reason2decide.llm.prompt_files import load_prompt
    from reason2decide.llm.settling import require_all_answered

    if against is not None and human is not None:
        raise ConfigError("--human belongs to scoring, not to --against; give one of the two")
    prompt_rubric = load_rubric(options.prompts)
    chosen = prompt_rubric.chosen(criteria)
    asked = JudgedSplit(predictions, dataset, split, rationale_source, records, resamples, seed)
    with connect(options, dataset, _dialect(dialect)) as client:
        judges = _judges(client, options, judge or [])
        kind = "judge" if against is None else "judge_pairwise"
        chat, decision = (load_prompt(f"{kind}{end}", options.prompts) for end in ("", "_decision"))
        result: dict[str, Any] | None
        if against is None:
            pointwise = Pointwise(chosen, prompt_rubric.version, chat, decision, options.settings())
            result = judge_predictions(asked, judges, pointwise, out, human=human, dry_run=options.dry_run, force=force)
        else:
            pairwise = Pairwise(chosen, prompt_rubric.version, chat, decision, options.settings())
            result = compare_predictions(asked, against, judges, pairwise, out, dry_run=options.dry_run, force=force)
    if result is not None:
        _print(result)
    require_all_answered(client)


def _dialect(text: str) -> Dialect:
    from reason2decide.llm.client.endpoint import Dialect

    for known in get_args(Dialect):
        if text == known:
            return cast("Dialect", known)
    raise ConfigError(f"the dialect is {text!r}; expected one of {', '.join(get_args(Dialect))}")


def _judges(client: Client, options: LlmOptions, more: Sequence[str]) -> list[Judge]:
    """The judge from the common options, named after its model, and those from --judge."""
    from reason2decide.llm.client.client import Client
    from reason2decide.llm.client.endpoint import Endpoint
    from reason2decide.llm.judge.pointwise import Judge
    from reason2decide.llm.judge.run import HUMAN, MEAN

    judges = [Judge(client.endpoint.model, client)]
    for text in more:
        name, _, rest = text.partition("=")
        parts = rest.split(",")
        if not name or not 2 <= len(parts) <= 4 or not all(parts):
            raise ConfigError(f"--judge {text!r}: expected NAME=URL,MODEL[,DIALECT[,KEY_VARIABLE]]")
        base_url, model = parts[:2]
        dialect = parts[2] if len(parts) > 2 else "chat"
        key_variable = parts[3] if len(parts) > 3 else None
        endpoint = Endpoint(base_url, model, key_variable, _dialect(dialect), options.allow_remote)
        judges.append(Judge(name, Client(endpoint, client.log, client.limits, client.budget)))
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names) or {HUMAN, MEAN} & set(names):
        raise ConfigError(
            f"the judges are named {', '.join(names)}; give each a unique name other than {HUMAN} and {MEAN}"
        )
    return judges


def _print(result: Mapping[str, Any]) -> None:
    from reason2decide.evaluation.results import MetricValue
    from reason2decide.llm.settling import in_words

    for name, values in result["criteria"].items():
        if result["kind"] == "pointwise":
            show(f"{name}  {in_words(MetricValue(**values))}")
        else:
            win_rate, flips = (in_words(MetricValue(**values[part])) for part in ("win_rate", "flips"))
            show(f"{name}  win rate {win_rate}; verdicts that flip with the order {flips}")
    for name, agreement in result.get("agreement", {}).items():
        show(f"{name}  judges' alpha (interval)  {in_words(MetricValue(**agreement['alpha_interval']))}")
    for name, raters in result.get("human", {}).items():
        for rater, agreement in raters.items():
            alpha = in_words(MetricValue(**agreement["alpha_interval"]))
            show(f"{name}  alpha of {rater} and people (interval)  {alpha}")
