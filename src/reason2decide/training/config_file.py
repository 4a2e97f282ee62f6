"""From a file to a training configuration: overrides, paths, and all mistakes in one message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.errors import ConfigError, DataError, unknown_key
from reason2decide.method.methods import method_named
from reason2decide.model.hub import SCRATCH
from reason2decide.syntax import Malformed, parse_toml
from reason2decide.training.config import TABLES, Config, is_per_stage

# What other trainers call our keys.
OTHER_NAMES = {
    "lr": "learning_rate",
    "model": "base",
    "model_name_or_path": "base",
    "data": "dataset",
    "source": "rationale_source",
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "epochs": "steps",
    "per_device_train_batch_size": "batch_size",
    "warmup_ratio": "learning_rate_warmup",
    "max_length": "lengths",
    "bf16": "precision",
    "fp16": "precision",
}


def load_config(path: Path, overrides: Sequence[str] = (), *, with_data: bool = False) -> Config:
    """Read a TOML file, apply `a.b=c` overrides, and resolve a relative dataset path against the file's folder.

    Args:
        with_data: whether the dataset must be there, with the rationales asked for.

    Raises:
        ConfigError: the file is missing or not TOML; keys or values are wrong, or the data: all of them in one message.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; expected a training configuration in TOML")
    try:
        content = parse_toml(path.read_bytes())
    except Malformed as error:
        raise ConfigError(f"{path} is {error}") from None
    # Paths in the file are relative to its folder, those of --set to the working directory.
    resolve_paths(content, path.parent)
    for override in overrides:
        apply_override(content, override)
    return parse_config(content, str(path), beside=list(_data_problems(content)) if with_data else ())


def resolve_paths(content: dict[str, Any], folder: Path) -> None:
    """Resolve the relative paths of a configuration's content against `folder`, in place."""
    if isinstance(content.get("dataset"), str):
        content["dataset"] = str((folder / content["dataset"]).resolve())
    holder, key = (content["base"], "encoder") if isinstance(content.get("base"), dict) else (content, "base")
    base = holder.get(key)
    if isinstance(base, str) and base != SCRATCH and (base.startswith(("./", "../")) or (folder / base).is_dir()):
        holder[key] = str((folder / base).resolve())


def parse_config(content: Mapping[str, Any], where: str, beside: Sequence[str] = ()) -> Config:
    """Check a configuration's content; `where` begins the error message, and `beside` are problems found elsewhere.

    Raises:
        ConfigError: every unknown key with the nearest valid one, and every impossible value, in one message.
    """
    config, problems = _validated(dict(content))
    if config is not None:
        problems += _stage_problems(config)
    problems += beside
    if problems or config is None:
        raise ConfigError(f"{where}:\n" + "\n".join(f"  - {line}" for line in problems))
    return config


def _data_problems(content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the dataset that a configuration names, and with the rationale sources it asks for."""
    if not isinstance(content.get("dataset"), str):
        return
    try:
        dataset = DatasetFolder.open(content["dataset"])
    except DataError as error:
        yield f"dataset: {error}"
        return
    sources = content.get("rationale_source")
    for source in dict.fromkeys(sources.values() if isinstance(sources, dict) else [sources]):
        if isinstance(source, str):
            try:
                dataset.require_source(source)
            except DataError as error:
                yield f"rationale_source: {error}"


def _validated(content: dict[str, Any]) -> tuple[Config | None, list[str]]:
    """The configuration without its bad keys, if the rest is valid, and the problems found."""
    try:
        return Config.model_validate(content), []
    except ValidationError as error:
        bad = {str(problem["loc"][0]) for problem in error.errors()}
        rest = {key: value for key, value in content.items() if key not in bad}
        config = None if len(rest) == len(content) else _validated(rest)[0]
        return config, list(_problems(error))


def describe_keys() -> str:
    """Every key with its default, meaning and source, one per line (`r2d train --explain`)."""
    lines = []
    models: list[tuple[str, type[BaseModel]]] = [("", Config), *((f"{name}.", table) for name, table in TABLES.items())]
    for prefix, model in models:
        for name, field in model.model_fields.items():
            if name == "lengths":
                continue
            note = " [per stage]" if is_per_stage(field) else ""
            lines.append(f"{prefix}{name:<24} {_default(field):<12} {field.description}{note}")
    return "\n".join(lines)


def _default(field: Any) -> str:
    if field.is_required():
        return "(required)"
    value = field.default
    if value is None or value == {} or value == ():
        return "(see right)"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value["*"] if isinstance(value, dict) else value)


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set one key of a content as in `--set a.b=c`, in place.

    Raises:
        ConfigError: it is not of that form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: expected KEY=VALUE, for example --set learning_rate.stage1=1e-4")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except Malformed:
        value = text  # a bare word is a string: --set base=tiny needs no quotes
    *tables, last = key.strip().split(".")
    target = content
    for table in tables:
        inner = target.get(table)
        if not isinstance(inner, dict):
            field = Config.model_fields.get(table)
            inner = {"*": inner} if inner is not None and field is not None and is_per_stage(field) else {}
            target[table] = inner
        target = inner
    target[last] = value


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        path = [str(part) for part in problem["loc"] if part != "*"]
        key = ".".join(path)
        if path[0] == "base" and len(path) > 1:
            # A base is a name or a table: pydantic reports what is wrong with it as either.
            if path[1] != "Encoder":
                yield f'base = {problem["input"]!r}: expected a name, a folder, or {{encoder = "..."}}'
        elif key == "precision" and problem["input"] in ("float16", "fp16", "half"):
            yield (
                f"precision = {problem['input']!r}: T5 overflows in float16 and its losses become nan; use bfloat16 "
                "if the GPU supports it, else float32 ('auto' does this)"
            )
        elif problem["type"] == "extra_forbidden":
            known = list(TABLES.get(path[0], Config).model_fields if len(path) > 1 else Config.model_fields)
            yield unknown_key(path[-1], known, OTHER_NAMES).replace(repr(path[-1]), repr(key), 1)
        elif problem["type"] == "missing":
            yield f"the key {key!r} is missing: {Config.model_fields[path[0]].description}"
        else:
            yield f"{key} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _stage_problems(config: Config) -> Iterator[str]:
    try:
        stages = method_named(config.method).stages
    except ConfigError as error:
        yield str(error)
        return
    names = [stage.name for stage in stages]
    for key, field in Config.model_fields.items():
        if is_per_stage(field):
            for stage in getattr(config, key):
                if stage not in (*names, "*"):
                    yield f"{key}.{stage}: {config.method} has no such stage; its stages are {', '.join(names)}"
    for stage in stages:
        if config.of("steps", stage.name) is None:
            yield f"steps: none given for {stage.name}; give one number for all stages or one for each"
        if stage.learns_rationales and config.of("rationale_source", stage.name) is None:
            yield f"rationale_source: none given for {stage.name}; {config.method} learns from rationales"
    for stage in config.stages():
        if stage.warmup_share + stage.ramp_share > 1:
            yield f"{stage.name}: warmup_share and ramp_share add up to more than 1, so the ramp would never end"
        if stage.explain == "none" and stage.alpha != 1:
            yield f"alpha.{stage.name} = {stage.alpha}: {config.method} learns labels only, so alpha stays 1"
        if stage.explain != "none" and stage.alpha == 1:
            yield f"alpha.{stage.name} = 1: no rationale would be learnt; use the method sft, or an alpha below 1"
        if stage.selection == "rationale_loss" and not stage.learns_rationales:
            yield f"selection.{stage.name} = 'rationale_loss': {config.method} learns no rationales; use 'macro_f1'"
        if stage.selection != "rationale_loss" and not stage.learns_labels:
            yield f"selection.{stage.name} = {stage.selection!r}: this stage learns no labels; use 'rationale_loss'"
        if stage.cycle_weight and config.fsdp:
            yield "cycle_weight and fsdp together are not supported; set one of them to 0 or false"
        if stage.explain == "conditioned" and stage.alpha == 0:
            yield f"alpha.{stage.name} = 0: no label would be learnt to condition on; use an alpha above 0"
