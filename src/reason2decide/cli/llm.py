"""`r2d rationalize`, `refine`, `zero-shot` and `llm prompts`, and the options common to all of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reason2decide.cli.models import Force
from reason2decide.cli.options import with_options
from reason2decide.console import show
from reason2decide.data.defaults import CALL_LOG
from reason2decide.errors import ConfigError, require
from reason2decide.evaluation.settings import DEFAULT_SETTINGS, RESAMPLES, Settings
from reason2decide.llm.client.calls import TOKEN_LIMITS
from reason2decide.llm.settings import MAX_WORDS, MIN_SUPPORT, Limits

if TYPE_CHECKING:
    from reason2decide.llm.client.client import Client
    from reason2decide.llm.client.endpoint import Dialect

BaseUrl = Annotated[
    str, typer.Option(metavar="URL", help="Base URL of the model's server, such as http://localhost:11434/v1.")
]
Model = Annotated[str, typer.Option(metavar="NAME", help="Name of the model on its server.")]
ApiKeyVariable = Annotated[
    str | None, typer.Option(metavar="NAME", help="Environment variable with the server's API key.")
]
AllowRemote = Annotated[bool, typer.Option("--allow-remote", help="Allow sending the texts to another machine.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Number of concurrent calls.")]
RequestsPerMinute = Annotated[float | None, typer.Option(help="Maximum requests per minute.")]
TokensPerMinute = Annotated[float | None, typer.Option(help="Maximum tokens per minute, as estimated.")]
MaxCalls = Annotated[int | None, typer.Option(min=1, help="Stop after this many requests, retries included.")]
MaxCost = Annotated[float | None, typer.Option(min=0, help="Stop before the cost exceeds this; needs prices.")]
PriceInput = Annotated[float, typer.Option(min=0, help="Price per million input tokens.")]
PriceOutput = Annotated[float, typer.Option(min=0, help="Price per million output tokens.")]
Timeout = Annotated[float, typer.Option(help="Longest silence between two tokens, in seconds.")]
Patience = Annotated[float, typer.Option(help="Seconds to wait for a server that loads its model or is busy.")]
GiveUpAfter = Annotated[
    int, typer.Option(min=1, help="Number of first calls that may all fail in the same way before the run stops.")
]
PromptsFolder = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FOLDER", help="Folder with your own prompts; see `r2d llm prompts`."),
]
LogFile = Annotated[
    Path | None, typer.Option("--log", metavar="FILE", help="Log of calls; default: calls.sqlite in the dataset.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Report what would be sent and its cost; send nothing.")]
Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 selects the likeliest answer.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Maximum tokens per answer, reasoning included.")]
ServerSettings = Annotated[
    bool, typer.Option("--server-settings", help="Omit temperature and max_tokens, which some models refuse.")
]


Sampling = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Send any setting to the server, as in repeat_penalty=1.1; repeatable."
    ),
]


@dataclass(frozen=True)
class LlmOptions:
    """The options common to all uses of a language model. Defaults are ours, or those of `Limits`."""

    base_url: BaseUrl
    model: Model
    api_key_variable: ApiKeyVariable = None
    allow_remote: AllowRemote = False
    concurrency: Concurrency = Limits.concurrency
    requests_per_minute: RequestsPerMinute = Limits.requests_per_minute
    tokens_per_minute: TokensPerMinute = Limits.tokens_per_minute
    max_calls: MaxCalls = None
    max_cost: MaxCost = None
    price_input: PriceInput = 0.0
    price_output: PriceOutput = 0.0
    timeout: Timeout = Limits.read_timeout
    patience: Patience = Limits.patience
    give_up_after: GiveUpAfter = Limits.give_up_after
    prompts: PromptsFolder = None
    log: LogFile = None
    dry_run: DryRun = False
    temperature: Temperature = 0.0
    max_tokens: MaxTokens = 1024
    server_settings: ServerSettings = False
    set_: Sampling = None

    def settings(self) -> dict[str, Any]:
        """The settings sent with a chat call; those of --set come last.

        Raises:
            ConfigError: one is not of the form NAME=VALUE, or limits answers to what is no number of tokens.
        """
        named = {} if self.server_settings else {"temperature": self.temperature, "max_tokens": self.max_tokens}
        settings = named | dict(map(_setting, self.set_ or ()))
        for name in TOKEN_LIMITS:
            if name in settings and (not isinstance(settings[name], int) or settings[name] < 1):
                raise ConfigError(f"--set {name}={settings[name]}: expected a whole number of tokens, at least 1")
        return settings


def _setting(text: str) -> tuple[str, Any]:
    """A setting's name and its value as JSON, or as text if it is not JSON."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r}: expected NAME=VALUE, for example --set repeat_penalty=1.1")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


@contextlib.contextmanager
def connect(options: LlmOptions, dataset: Path, dialect: Dialect = "chat") -> Iterator[Client]:
    """Connect a client to the endpoint in the options, and report what was spent when it closes, even on an error.

    The log of calls lies in the dataset's folder unless the options name another file: then no answer about it is paid
    for twice, whatever the output is called.

    Raises:
        UserError: the endpoint, the limits, the budget or the log cannot be used.
    """
    from reason2decide.data.dataset_folder import DatasetFolder
    from reason2decide.llm.client.budget import Budget, Prices
    from reason2decide.llm.client.client import Client
    from reason2decide.llm.client.endpoint import Endpoint
    from reason2decide.llm.client.log import CallLog
    from reason2decide.llm.settings import Limits
    from reason2decide.llm.settling import report_spent

    endpoint = Endpoint(options.base_url, options.model, options.api_key_variable, dialect, options.allow_remote)
    limits = Limits(
        concurrency=options.concurrency,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        read_timeout=options.timeout,
        patience=options.patience,
        give_up_after=options.give_up_after,
    )
    prices = Prices(options.price_input, options.price_output)
    budget = Budget(prices, max_calls=options.max_calls, max_cost=options.max_cost)
    DatasetFolder.open(dataset)  # before a log is made in what is no dataset
    path = options.log or dataset / CALL_LOG
    was_there = path.exists()
    try:
        with CallLog(path) as log:
            client = Client(endpoint, log, limits, budget)
            try:
                yield client
            finally:
                if not options.dry_run:
                    report_spent(client)
    finally:
        if options.dry_run and not was_there:
            path.unlink(missing_ok=True)


Out = Annotated[Path, typer.Option(help="Dataset folder to write.")]
DatasetArgument = Annotated[Path, typer.Argument(metavar="DATASET", help="Dataset folder.")]
Splits = Annotated[
    list[str] | None, typer.Option("--split", help="Split to write rationales for; repeatable; default: all.")
]
MaxWords = Annotated[int, typer.Option(min=1, help="Maximum words per rationale.")]
MinSupport = Annotated[
    float, typer.Option(min=0, max=1, help="Least share of a rationale's content words that its text must have.")
]

llm_app = typer.Typer(help="Show what is sent to language models.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command("rationalize")(with_options("options", LlmOptions)(rationalize_command))
    app.command("refine")(with_options("options", LlmOptions)(refine_command))
    app.command("zero-shot")(with_options("options", LlmOptions)(zero_shot_command))
    app.add_typer(llm_app, name="llm")


def rationalize_command(
    dataset: DatasetArgument,
    out: Out,
    options: LlmOptions,
    source: Annotated[
        str, typer.Option(help="Name of the new rationale source; with --for-labels, of the one to add contrasts to.")
    ] = "llm",
    split: Splits = None,
    for_labels: Annotated[
        str | None,
        typer.Option(
            metavar="second|predicted|all",
            help="Argue for labels that are not the gold one: the model's wrong label or second choice, only its wrong "
            "label, or all.",
        ),
    ] = None,
    predictions: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="With --for-labels: predictions of the records; repeatable."),
    ] = None,
    keep_unsupported: Annotated[
        bool,
        typer.Option(
            "--keep-unsupported", help="With --for-labels: also keep cases that nothing in the text supports."
        ),
    ] = False,
    without_label: Annotated[
        bool, typer.Option("--without-label", help="Withhold the gold label, so that the model decides too.")
    ] = False,
    only_right: Annotated[
        bool,
        typer.Option(
            "--only-right", help="With --without-label: keep only rationales whose decision is the gold label."
        ),
    ] = False,
    max_words: MaxWords = MAX_WORDS,
    min_support: MinSupport = MIN_SUPPORT,
    force: Force = False,
) -> None:
    """Write rationales with a language model in a copy of the dataset: of a new source, or for other labels."""
    from reason2decide.llm.settling import in_words, require_all_answered
    from reason2decide.llm.teach.contrast import Advocate, PredictionsById
    from reason2decide.llm.teach.rationalize import Teacher
    from reason2decide.llm.teach.source_writing import SourceWriter, write_source

    if for_labels is None and (predictions or keep_unsupported):
        raise ConfigError("--predictions and --keep-unsupported need --for-labels")
    if for_labels is not None and without_label:
        raise ConfigError("--for-labels tells the model what to argue for, and --without-label withholds it; give one")
    if only_right and not without_label:
        raise ConfigError("--only-right needs --without-label: otherwise the model is told the label")
    writer: SourceWriter
    if for_labels is not None:
        writer = Advocate(
            source,
            for_labels,  # type: ignore[arg-type]  # it checks it
            PredictionsById(predictions) if predictions else None,
            keep_unsupported=keep_unsupported,
            max_words=max_words,
            min_support=min_support,
            sampling=options.settings(),
            prompts=options.prompts,
        )
        with connect(options, dataset) as client:
            write_source(client, dataset, out, writer, splits=split or (), force=force, dry_run=options.dry_run)
        require_all_answered(client)
        return
    teacher = Teacher(
        source,
        without_label=without_label,
        only_right=only_right,
        max_words=max_words,
        min_support=min_support,
        sampling=options.settings(),
        prompts=options.prompts,
    )
    with connect(options, dataset) as client:
        written = write_source(client, dataset, out, teacher, splits=split or (), force=force, dry_run=options.dry_run)
    if written is not None and without_label:
        show(f"teacher_accuracy {in_words(teacher.accuracy())}")
    require_all_answered(client)


def refine_command(
    dataset: DatasetArgument,
    out: Out,
    options: LlmOptions,
    from_: Annotated[
        str, typer.Option("--from", metavar="SOURCE", help="Source of the rationales to rewrite.")
    ] = "nurse",
    to: Annotated[str, typer.Option(metavar="SOURCE", help="Name of the new rationale source.")] = "nurse_refined",
    split: Splits = None,
    drop_flagged: Annotated[
        bool, typer.Option("--drop-flagged", help="Drop rationales to which the model added words or numbers.")
    ] = False,
    max_words: MaxWords = MAX_WORDS,
    min_support: MinSupport = MIN_SUPPORT,
    force: Force = False,
) -> None:
    """Rewrite terse rationales into readable ones with a language model, and flag what it adds."""
    from reason2decide.data.dataset_folder import DatasetFolder
    from reason2decide.llm.settling import require_all_answered
    from reason2decide.llm.teach.refine import Editor
    from reason2decide.llm.teach.source_writing import write_source

    DatasetFolder.open(dataset).require_source(from_)
    editor = Editor(
        from_,
        to,
        drop_flagged=drop_flagged,
        max_words=max_words,
        min_support=min_support,
        sampling=options.settings(),
        prompts=options.prompts,
    )
    with connect(options, dataset) as client:
        written = write_source(client, dataset, out, editor, splits=split or (), force=force, dry_run=options.dry_run)
    if written is not None:
        show(f"flagged {editor.flagged}")
    require_all_answered(client)


def zero_shot_command(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Option(help="Results folder to write.")],
    options: LlmOptions,
    split: Annotated[str, typer.Option(help="Split to decide on.")] = DEFAULT_SETTINGS.split,
    dialect: Annotated[str, typer.Option(help="Protocol: chat, or systemone or decisions for probabilities.")] = "chat",
    few_shot: Annotated[int, typer.Option(min=0, help="With chat: number of training examples to show.")] = 0,
    orders: Annotated[
        int, typer.Option(min=1, max=2, help="Orders of a decision model's options; 2 also asks in reverse.")
    ] = 2,
    rationale_source: Annotated[
        str | None, typer.Option(help="Source of the rationales to show and to compare with.")
    ] = None,
    max_words: MaxWords = MAX_WORDS,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples for the intervals.")] = RESAMPLES,
    seed: Annotated[int, typer.Option(min=0, help="Seed for the bootstrap and for drawing the examples.")] = 0,
    force: Force = False,
) -> None:
    """Decide with an untrained language model, and evaluate it exactly like a trained one."""
    if dialect not in ("chat", "systemone", "decisions"):
        raise ConfigError(f"--dialect {dialect!r}: expected chat, systemone or decisions")
    require("matplotlib", "report")
    from reason2decide.cli.evidence import print_results
    from reason2decide.llm.rival import make_rival, zero_shot
    from reason2decide.llm.settling import require_all_answered

    settings = Settings(split=split, rationale_source=rationale_source, resamples=resamples, seed=seed)
    with connect(options, dataset, dialect) as client:  # type: ignore[arg-type]
        rival = make_rival(
            client,
            dataset,
            rationale_source,
            few_shot=few_shot,
            orders=orders,
            seed=seed,
            max_words=max_words,
            sampling=options.settings(),
            prompts=options.prompts,
        )
        results = zero_shot(client, dataset, out, rival, settings, force=force, dry_run=options.dry_run)
    if results is not None:
        print_results(results)
    require_all_answered(client)


@llm_app.command("prompts")
def prompts_command(
    name: Annotated[str | None, typer.Argument(help="Prompt to print; default: all.")] = None,
    folder: PromptsFolder = None,
) -> None:
    """Print the prompts that are sent. To change one, copy it to a folder, edit text and version, and use --prompts."""
    from reason2decide.llm.prompt_files import load_prompt, prompt_names

    for number, found in enumerate([name] if name is not None else prompt_names()):
        prompt = load_prompt(found, folder)
        show("\n" * (number > 0) + f"name: {prompt.name}\nversion: {prompt.version}")
        show(f"--- system\n{prompt.system}\n--- user\n{prompt.user}")
