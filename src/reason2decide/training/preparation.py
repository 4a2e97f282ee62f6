"""Everything that training reads before it writes: the dataset, the base, token tables, the batches of each stage.

What cannot be trained is refused here, so that a mistake leaves no run folder behind.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reason2decide.console import say, warn
from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.records import JsonlRecords
from reason2decide.data.unread_characters import UnreadCharacters
from reason2decide.errors import ConfigError, DataError, require
from reason2decide.model.hub import SCRATCH
from reason2decide.model.prompt_encoder import PromptEncoder, Truncation, tokenizer_hash
from reason2decide.model.reading import positions_of
from reason2decide.training.base import load_base, weights_hash
from reason2decide.training.base_check import check_base
from reason2decide.training.batches import BatchPlan
from reason2decide.training.config import Config
from reason2decide.training.features import SplitFeatures, TokenCache
from reason2decide.training.lora import lora_targets
from reason2decide.training.processes import Processes
from reason2decide.training.prompt_form import prompt_form
from reason2decide.training.run_log import TRACKERS
from reason2decide.training.stage_plan import batch_plan

TOKENS = ".tokens"  # the token cache of a dataset folder
TEXTS_TRIED = 3  # ours: texts that a base reads before anything is trained
READ_FOR_CHARACTERS = 20_000  # ours: texts, labels and rationales in which unread characters are sought


@dataclass(frozen=True)
class Prepared:
    """What stages train on and with.

    `train` and `validation` have no rationales yet: `features` adds those of `sources[stage]`, and for the stages in
    `contrasted` those for other labels. `identity` is all that decides what is learnt: a run resumes only from a
    checkpoint of the same identity.
    """

    dataset: DatasetFolder
    sources: Mapping[str, str]
    model: Any
    tokenizer: Any
    train: SplitFeatures
    validation: SplitFeatures
    plans: Mapping[str, BatchPlan]
    contrasted: Collection[str]
    bfloat16: bool
    identity: Mapping[str, Any]

    def features(self, stage: str) -> tuple[SplitFeatures, SplitFeatures]:
        """The training and validation split with the rationales that a stage learns from."""
        source = self.sources.get(stage)
        train = self.train.with_source(source, contrasts=stage in self.contrasted)
        return train, self.validation.with_source(source)


@contextlib.contextmanager
def prepared(config: Config, processes: Processes, records: Path) -> Iterator[Prepared]:
    """Read and check all that a configuration names; token tables exist as long as the context.

    Args:
        records: the folder where the dataset lies now.

    Raises:
        ConfigError, DataError, BaseModelError: the configuration, its data or its base cannot be used.
    """
    bfloat16 = _use_bfloat16(config.precision)  # refuses what this machine cannot do before anything is read
    if config.lora and config.fsdp:
        raise ConfigError("lora and fsdp together are not supported; adapters are small: leave fsdp out")
    if config.lora and (config.base == SCRATCH or not isinstance(config.base, str)):
        raise ConfigError(
            f"base {config.base_name} has new, random weights, which adapters would leave as they are; leave lora out"
        )
    for tracker in config.report_to:
        require(*TRACKERS[tracker])
    dataset = DatasetFolder.open(records)
    dataset.verify()
    sources = {
        stage.name: config.of("rationale_source", stage.name) for stage in config.stages() if stage.learns_rationales
    }
    splits = {name: dataset.split(name) for name in ("train", "validation")}
    for source in set(sources.values()):
        dataset.require_source(source)
        for split in splits.values():
            _require_rationales(split, source)
    _require_several_labels(splits["train"])

    say(f"base {config.base_name}; method {config.method}; dataset {dataset.info.name}")
    if config.without_effect:
        warn(f"{', '.join(config.without_effect)}: no stage of {config.method} uses it, so it has no effect")
    contrasted = [stage.name for stage in config.stages() if stage.learns_contrasts]
    for name in contrasted:
        _require_contrasts(splits["train"], sources[name], config.method)
    model, tokenizer = load_base(
        config.base,
        texts=lambda: _texts(dataset),
        seed=config.seed,
        dropout=config.dropout,
        bits=config.lora.bits if config.lora else 32,
    )
    if config.lora:
        lora_targets(model, config.lora)  # refused before anything is written
    _report_unread(tokenizer, dataset, config.base_name)
    encoder = PromptEncoder(
        tokenizer, config.lengths, prompt_form(model, tokenizer, config.base_name, one_pass=config.one_pass)
    )
    _require_positions(model, config, encoder)
    with contextlib.ExitStack() as stack:
        with processes.local_main_first():
            cache = TokenCache(stack.enter_context(_cache_folder(dataset)), tokenizer, encoder.form)
            train, validation = (
                SplitFeatures(split, dataset.hashes[name], dataset.info.labels, encoder, cache)
                for name, split in splits.items()
            )
            for source in set(sources.values()):
                train.with_source(source), validation.with_source(source)
            for name in contrasted:
                train.with_source(sources[name], contrasts=True)
        report_cuts("texts", "input", train.cut_texts)
        if config.base != SCRATCH:
            tried = [train[row] for row in range(min(TEXTS_TRIED, len(train)))]
            with processes.main_only():  # what another process saves, the library leaves incomplete
                if processes.is_main:
                    check_base(model, encoder, [own.text for own in tried], tried[0].choices, config.base_name)
        yield Prepared(
            dataset,
            sources,
            model,
            tokenizer,
            train,
            validation,
            plans={
                stage.name: batch_plan(
                    config,
                    stage,
                    train.with_source(sources.get(stage.name), contrasts=stage.learns_contrasts),
                    processes.count,
                )
                for stage in config.stages()
            },
            contrasted=contrasted,
            bfloat16=bfloat16,
            identity={
                **config.identity(),
                "data": dict(dataset.hashes),
                "tokenizer": tokenizer_hash(tokenizer),
                "prompt_form": encoder.form.to_json(),
                "processes": processes.count,
                "precision": "bfloat16" if bfloat16 else "float32",
                # Checkpoints of adapters do not hold the weights beside them.
                **({"base_weights": weights_hash(model)} if config.lora else {}),
            },
        )


@contextlib.contextmanager
def _cache_folder(dataset: DatasetFolder) -> Iterator[Path]:
    """The folder of token tables: next to the records they are made from, or else a temporary one."""
    folder = dataset.path / TOKENS
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        say(f"cannot write in {dataset.path}: its texts are tokenised for this run only")
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    yield folder


def _use_bfloat16(precision: str) -> bool:
    """Whether passes compute in bfloat16: on a GPU that has it unless told otherwise, on a CPU if asked for."""
    if not torch.cuda.is_available():
        return precision == "bfloat16"
    has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" and not has_it:
        raise ConfigError("precision = 'bfloat16': this GPU does not support it; use 'auto' or 'float32'")
    return has_it if precision == "auto" else precision == "bfloat16"


def _texts(dataset: DatasetFolder) -> Iterator[str]:
    """Everything in the training split that a tokenizer should know: texts, labels, rationales, contrasts.

    Those of all sources, whatever a method learns from, so that all runs on a dataset have the same base.
    """
    yield from dataset.info.labels.values
    for record in dataset.split("train"):
        yield record.text
        yield record.label or ""
        yield from record.rationales.values()
        yield from (text for by_label in record.contrasts.values() for text in by_label.values())


def _report_unread(tokenizer: Any, dataset: DatasetFolder, base: str) -> None:
    """Warn about characters that the base cannot read or write; refuse a base that reads next to nothing.

    Raises:
        BaseModelError: as said.
    """
    unread = UnreadCharacters(tokenizer)
    unread.add(itertools.islice(_texts(dataset), READ_FOR_CHARACTERS))
    unread.require_readable(base)
    if unread.counts():
        warn(f"the base {base!r} cannot read or write {unread.in_words()}; replace them, or take another base")


def _require_several_labels(records: JsonlRecords) -> None:
    labels = set()
    for record in records:
        labels.add(record.label)
        if len(labels) > 1:
            return
    raise ConfigError(
        f"every record of {records.path} has the label {labels.pop()!r}; a decision needs at least two labels"
    )


def _require_rationales(records: JsonlRecords, source: str) -> None:
    if not any(source in record.rationales for record in records):
        raise DataError(
            f"no record of {records.path} has a rationale from source {source!r}; import the data with another "
            "--split, or name another rationale_source"
        )


def _require_contrasts(records: JsonlRecords, source: str, method: str) -> None:
    if not any(source in record.contrasts for record in records):
        raise DataError(
            f"the method {method} learns from rationales for other labels than the gold one, and no record of "
            f"{records.path} has one from source {source!r}; write them with `r2d rationalize --for-labels` "
            "or import them with `r2d data import table --contrast`, or take the method r2d-posterior, which needs none"
        )


def _require_positions(model: Any, config: Config, encoder: PromptEncoder) -> None:
    """Refuse lengths over the positions of a base that has so many (BART, BERT); T5's positions are relative."""
    lengths = config.lengths
    if not model.config.is_encoder_decoder:
        limit = positions_of(model.config)
        after = encoder.longest_after_text
        if limit is not None and lengths.input + after > limit:
            raise ConfigError(
                f"lengths.input and what follows a text (task, label and rationale) are {lengths.input + after} tokens "
                f"together, but the base {config.base_name!r} has {limit} positions for all; set lengths.input to at "
                f"most {limit - after}"
            )
        return
    before = lengths.label if config.one_pass else 0  # the label precedes the rationale in one answer
    parts = {"input": (model.get_encoder().config, 0), "rationale": (model.get_decoder().config, before)}
    for key, (part, taken) in parts.items():
        limit = positions_of(part)
        if limit is not None and getattr(lengths, key) + taken > limit:
            beside = f", and lengths.label {taken} before it" if taken else ""
            raise ConfigError(
                f"lengths.{key} is {getattr(lengths, key)}{beside}, but the base {config.base_name!r} has {limit} "
                f"positions; set lengths.{key} to at most {limit - taken}"
            )


def report_cuts(what: str, key: str, cuts: Truncation) -> None:
    """Warn about cut texts, and name the limit that would keep them whole."""
    if cuts.cut:
        warn(f"{cuts} {what} of the training split were cut; raise lengths.{key} to keep them whole")
