"""Evaluate a language model as a rival: it decides untrained, and is evaluated exactly like our own models.

A chat model writes a rationale and a label from the set. A decision model gives probabilities and writes nothing: it is
asked about the labels in two orders, and the mean counts, because the order influences such models.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reason2decide.console import say
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.predictions import NO_ANSWER, Prediction, write_predictions
from reason2decide.data.records import LabelSet, Record, require_label
from reason2decide.errors import ConfigError, DataError
from reason2decide.evaluation.results import RESULTS, MetricValue, Results
from reason2decide.evaluation.settings import DEFAULT_SETTINGS, Settings
from reason2decide.files import new_file, require_absent
from reason2decide.llm.answers import Decided, decided_schema
from reason2decide.llm.client.calls import AnyCall, Call, DecisionCall, ModelAnswer, Question
from reason2decide.llm.client.client import Client
from reason2decide.llm.prompt_files import Prompt, load_prompt
from reason2decide.llm.settings import MAX_WORDS
from reason2decide.llm.settling import announce_cost, counts_in_words, host, in_words, logged, settle, share
from reason2decide.workflows.evaluate import evaluate_predictions, opened

ZERO_SHOT = "zero_shot.json"
RAW, VALIDATION = "raw_predictions.jsonl", "validation_predictions.jsonl"


class Rival(ABC):
    """Asks about a record and turns the answers into a prediction; `unanswered` counts why answers are missing."""

    prompt: Prompt

    def __init__(self) -> None:
        self.unanswered: Counter[str] = Counter()

    @abstractmethod
    def calls(self, record: Record, labels: LabelSet) -> Sequence[AnyCall]:
        """The calls about one record."""

    @abstractmethod
    def predict(self, record: Record, labels: LabelSet, answers: Sequence[ModelAnswer | str]) -> Prediction:
        """Make the prediction from the answers, in the order of the calls; for a failed call, its kind of failure."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings of the questions."""

    def found(self) -> dict[str, Any]:
        """Other findings from the answers since the last call of this method; nothing by default."""
        return {}


class ChatRival(Rival):
    """Decides with a rationale; `examples` are decided cases to show to the model, none for zero-shot."""

    def __init__(
        self,
        examples: Sequence[Record] = (),
        source: str | None = None,
        *,
        max_words: int = MAX_WORDS,
        sampling: Mapping[str, Any] = {},
        prompts: Path | None = None,
    ) -> None:
        super().__init__()
        self.prompt = load_prompt("zero_shot", prompts)
        self.max_words, self.sampling, self.source = max_words, sampling, source
        self.example_ids = [record.id for record in examples]
        self._examples = "\n\n".join(_example(record, source) for record in examples) or "(none)"

    def calls(self, record: Record, labels: LabelSet) -> Sequence[Call]:
        """One call."""
        choices = record.choices_or(labels)
        data = {"examples": self._examples, "choices": "\n".join(choices), "text": record.text}
        words = {"max_words": str(self.max_words)}
        apart = ("examples",) if record.choices else ("examples", "choices")
        messages = self.prompt.messages(data, words, apart=apart)
        schema = decided_schema(choices, self.max_words, listed=record.choices is not None)
        return [Call(record.id, messages, schema, self.sampling, self.prompt.full_version)]

    def predict(self, record: Record, labels: LabelSet, answers: Sequence[ModelAnswer | str]) -> Prediction:
        """Label and rationale as written."""
        [answer] = answers
        if isinstance(answer, str):
            self.unanswered[answer] += 1
            return Prediction(record.id, NO_ANSWER)
        decided = answer.parsed
        assert isinstance(decided, Decided)
        return Prediction(record.id, decided.label, rationale=decided.rationale.strip() or None)

    def settings(self) -> dict[str, Any]:
        """Prompt settings and the ids of the examples."""
        shown = {"few_shot": len(self.example_ids), "example_ids": self.example_ids, "example_source": self.source}
        return {**shown, "max_words": self.max_words, "sampling": dict(self.sampling)}


class DecisionRival(Rival):
    """Gives probabilities. Ordinal labels are asked for as a score, from the least urgent up, others as a choice.

    With two `orders` the options are also asked for in reverse. A record answered in only one order gets the
    probabilities of that order.
    """

    def __init__(self, orders: int = 2, *, prompts: Path | None = None) -> None:
        super().__init__()
        self.prompt, self.orders = load_prompt("zero_shot_question", prompts), orders
        self._flips: list[tuple[str, bool]] = []
        self._one_order = 0

    def calls(self, record: Record, labels: LabelSet) -> Sequence[DecisionCall]:
        """One call for each order."""
        choices = record.choices_or(labels)
        scored = labels.ordinal and record.choices is None
        upwards = choices[::-1] if labels.urgent == "first" else choices
        low, high = ("least urgent", "most urgent") if labels.urgent else ("lowest", "highest")
        asked = [
            (upwards, f"The levels go from the {low} to the {high}."),
            (upwards[::-1], f"The levels go from the {high} to the {low}."),
        ]
        calls = []
        for i, (options, words) in enumerate(asked[: self.orders]):
            [message] = self.prompt.messages({}, {"order": words if scored else ""})
            question = Question("score" if scored else "choice", message["content"].strip(), dict.fromkeys(options))
            calls.append(
                DecisionCall(
                    f"{record.id}/{i}", record.text, {"decision": question}, prompt_version=self.prompt.full_version
                )
            )
        return calls

    def predict(self, record: Record, labels: LabelSet, answers: Sequence[ModelAnswer | str]) -> Prediction:
        """The label with the largest mean probability; the first in the set if several are equal."""
        given = [distribution for answer in answers if (distribution := _distribution(answer)) is not None]
        if not given:
            self.unanswered[next((answer for answer in answers if isinstance(answer, str)), "refused")] += 1
            return Prediction(record.id, NO_ANSWER)
        choices = record.choices_or(labels)
        if len(given) == 2:
            best = [max(choices, key=probabilities.__getitem__) for probabilities in given]
            self._flips.append((record.group or f"id:{record.id}", best[0] != best[1]))
        elif self.orders == 2:
            self._one_order += 1
        total = sum(probabilities[choice] for probabilities in given for choice in choices)
        mean = {choice: sum(probabilities[choice] for probabilities in given) / total for choice in choices}
        return Prediction(record.id, max(choices, key=mean.__getitem__), mean)

    def settings(self) -> dict[str, Any]:
        """The number of orders."""
        return {"orders": self.orders}

    def found(self) -> dict[str, Any]:
        """The share of flips among records answered in both orders, and the number answered in only one."""
        flips, self._flips = share(self._flips), []
        alone, self._one_order = self._one_order, 0
        return {"flip_rate": asdict(flips), "answered_in_one_order": alone} if self.orders == 2 else {}


def _distribution(answer: ModelAnswer | str) -> Mapping[str, float] | None:
    if isinstance(answer, str):
        return None
    assert answer.probabilities is not None
    return answer.probabilities["decision"]


def _example(record: Record, source: str | None) -> str:
    rationale = record.rationales.get(source or "")
    lines = [f"Text: {record.text}", *([f"Possible decisions: {'; '.join(record.choices)}"] if record.choices else [])]
    return "\n".join([*lines, *([f"Rationale: {rationale}"] if rationale else []), f"Decision: {record.label}"])


def draw_examples(dataset: DatasetFolder, count: int, source: str | None, seed: int = 0) -> list[Record]:
    """Draw `count` training records: the labels in turn, and for each label the records with the lowest id hashes.

    If a source is given, only records with a rationale from it are drawn. The same seed draws the same records, and a
    smaller draw is the beginning of a larger one.

    Raises:
        DataError: there are fewer such records.
    """
    ranked: dict[str, list[tuple[str, int]]] = {label: [] for label in dataset.info.labels.values}
    train = dataset.split("train")
    for index, record in enumerate(train):
        if source is None or source in record.rationales:
            # Records with their own choices form one class.
            turn = "" if record.choices is not None else record.label or ""
            place = hashlib.sha256(f"{seed}/{record.id}".encode()).hexdigest()
            ranked.setdefault(turn, []).append((place, index))
    queues = [sorted(places) for places in ranked.values() if places]
    longest = max(map(len, queues), default=0)
    turns = [queue[i][1] for i in range(longest) for queue in queues if i < len(queue)]
    if len(turns) < count:
        kind = f" with a rationale of source {source!r}" if source else ""
        raise DataError(f"{count} examples were requested, but the training split has only {len(turns)} records{kind}")
    return [train[index] for index in turns[:count]]


@dataclass(frozen=True)
class Outcome:
    """The result of a rival on one split."""

    predictions: Sequence[Prediction]
    unanswered: Mapping[str, int]
    served: Sequence[str]
    found: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The counts, without the predictions."""
        records = {"records": len(self.predictions), "unanswered": dict(self.unanswered)}
        return {**records, "served_models": list(self.served), **self.found}


def zero_shot(
    client: Client,
    dataset_path: Path,
    out: Path,
    rival: Rival,
    settings: Settings = DEFAULT_SETTINGS,
    *,
    force: bool = False,
    dry_run: bool = False,
) -> Results | None:
    """Let a rival decide a split, and write the results folder `out` like an evaluation; None after a dry run.

    A rival with probabilities also decides validation, if there is one, to fit its temperature and thresholds.
    Besides the files of every results folder, `out` gets `ZERO_SHOT` (settings, failures, and how often the order
    decided) and, for a rival with probabilities, `RAW` and `VALIDATION`.

    Raises:
        DataError: the dataset or its split cannot be used.
        OutputError: `out` exists and `force` is false.
        BudgetReached, EndpointError: as `Client.run`; all answers received are in the log.
    """
    require_absent(out, RESULTS, force=force)
    split = settings.split
    dataset = opened(dataset_path, settings)
    calibrated = isinstance(rival, DecisionRival) and split != "validation" and "validation" in dataset.hashes
    splits = [split, "validation"] if calibrated else [split]
    labels = dataset.info.labels
    records = {name: dataset.split(name) for name in splits}

    def calls() -> Iterator[AnyCall]:
        for split_records in records.values():
            for record in split_records:
                require_label(record, labels)
                yield from rival.calls(record, labels)

    expected = announce_cost(client, calls())
    if dry_run:
        return None
    failed = settle(client, calls(), f"asking {client.endpoint.model}", expected.calls + expected.cached)
    outcomes: dict[str, Outcome] = {}
    for name in splits:
        served: set[str] = set()
        predictions = []
        for record in records[name]:
            answers = [
                failed[call.id].kind if call.id in failed else logged(client, call)
                for call in rival.calls(record, labels)
            ]
            served |= {answer.model for answer in answers if isinstance(answer, ModelAnswer)}
            predictions.append(rival.predict(record, labels, answers))
        unanswered, rival.unanswered = rival.unanswered, Counter()
        outcomes[name] = Outcome(predictions, unanswered, sorted(served), rival.found())
        _tell(name, outcomes[name])
    description = {
        "model": client.endpoint.model,
        "host": host(client),
        "dialect": client.endpoint.dialect,
        "prompt": rival.prompt.full_version,
        **rival.settings(),
        "splits": {name: outcome.to_json() for name, outcome in outcomes.items()},
    }
    results = evaluate_predictions(
        outcomes[split].predictions,
        dataset_path,
        out,
        settings,
        system=client.endpoint.model,
        validation=outcomes["validation"].predictions if calibrated else None,
        force=force,
    )
    for name, outcome in {RAW: outcomes[split], VALIDATION: outcomes["validation"]}.items() if calibrated else ():
        with new_file(out / name) as file:
            write_predictions(file, outcome.predictions)
    with new_file(out / ZERO_SHOT) as file:
        file.write_text(json.dumps(description, indent=2, ensure_ascii=False), "utf-8")
    return results


def _tell(split: str, outcome: Outcome) -> None:
    if outcome.unanswered:
        count, why = sum(outcome.unanswered.values()), counts_in_words(outcome.unanswered)
        say(f"{split}: {count} of {len(outcome.predictions)} records have no answer: {why}")
    if "flip_rate" in outcome.found:
        say(f"{split}: the order of the options decided in {in_words(MetricValue(**outcome.found['flip_rate']))}")


def make_rival(
    client: Client,
    dataset_path: Path,
    source: str | None,
    *,
    few_shot: int = 0,
    orders: int = 2,
    seed: int = 0,
    max_words: int = MAX_WORDS,
    sampling: Mapping[str, Any] = {},
    prompts: Path | None = None,
) -> Rival:
    """Make the rival that fits the client's dialect.

    Examples are shown with rationales of `source`, or of the dataset's only source.

    Raises:
        ConfigError: examples for a decision model, which takes none.
        DataError: as `draw_examples`.
    """
    if client.endpoint.dialect != "chat":
        if few_shot:
            raise ConfigError("--few-shot needs --dialect chat: a decision model is given only the text")
        return DecisionRival(orders, prompts=prompts)
    dataset = DatasetFolder.open(dataset_path)
    if source is None and len(dataset.info.rationale_sources) == 1:
        [source] = dataset.info.rationale_sources
    examples = draw_examples(dataset, few_shot, source, seed) if few_shot else []
    return ChatRival(examples, source, max_words=max_words, sampling=sampling, prompts=prompts)
