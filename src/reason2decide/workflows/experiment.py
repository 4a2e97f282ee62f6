"""An experiment as data: a training configuration, the axes that vary, and the cells of their product.

name = "methods"
reference = "sft"                      # the system the others are compared with
primary = ["macro_f1"]                 # metrics to confirm, whose p values are adjusted; default: by task
[training]                             # as in a training configuration; a table by stage may name
dataset = "data"                       # the stages of all methods
steps = {stage1 = 500, stage2 = 500, sft = 1000, dss = 1000}
[by_method.sft]                        # keys of [training] that differ for one method
learning_rate = 1e-4
[grid]                                 # every combination is a cell; seeds are averaged, other axes name systems
method = ["r2d", "sft", "dss"]
seed = [0, 1, 2]
[evaluation]                           # as `evaluation/settings.py` names them
rationale_source = "llm"
[[results]]                            # systems from elsewhere: folders that `r2d evaluate` wrote
name = "zero-shot"
folders = ["results/zero-shot"]
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reason2decide.errors import ConfigError
from reason2decide.evaluation.comparison import require_metrics
from reason2decide.evaluation.settings import Settings, parse_settings, with_paths_from
from reason2decide.method.methods import METHODS
from reason2decide.syntax import Malformed, parse_toml
from reason2decide.training.config import Config
from reason2decide.training.config_file import apply_override, parse_config, resolve_paths

AXES = ("method", "base", "layout", "rationale_source", "train_records", "seed")


class OtherResults(BaseModel):
    """A system that was evaluated elsewhere: one results folder per seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    folders: tuple[Path, ...] = Field(min_length=1)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    reference: str | dict[str, Any]
    primary: tuple[str, ...] = ()
    training: dict[str, Any]
    by_method: dict[str, dict[str, Any]] = {}
    grid: dict[str, list[Any]]
    evaluation: dict[str, Any] = {}
    results: tuple[OtherResults, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation: `system` is the name shared with its other seeds, `point` its axes' values."""

    name: str
    system: str
    point: Mapping[str, Any]
    config: Config


@dataclass(frozen=True)
class Family:
    """Systems that are compared with one of them; `name` is what they have in common, empty for a single family."""

    name: str
    reference: str
    systems: Mapping[str, Sequence[Cell]]


@dataclass(frozen=True)
class Experiment:
    """A name, the cells and the families they are compared in, how they are evaluated, and systems from elsewhere."""

    name: str
    cells: tuple[Cell, ...]
    families: tuple[Family, ...]
    evaluation: Settings
    others: tuple[OtherResults, ...]
    primary: tuple[str, ...] = ()


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, with `a.b=c` overrides; relative paths start at the file's folder.

    Raises:
        ConfigError: the file is missing or not valid TOML, a key is unknown, or an axis or a configuration is wrong.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; expected an experiment in TOML")
    try:
        content = parse_toml(path.read_bytes())
    except Malformed as error:
        raise ConfigError(f"{path} is {error}") from None
    training = content.get("training")
    if isinstance(training, dict):
        resolve_paths(training, path.parent)
    if isinstance(content.get("evaluation"), dict):
        content["evaluation"] = with_paths_from(content["evaluation"], path.parent.resolve())
    grid, others, by_method = (content.get(key) for key in ("grid", "results", "by_method"))
    if isinstance(grid, dict) and isinstance(grid.get("base"), list):
        bases = [{"base": base} for base in grid["base"]]
        for own in bases:
            resolve_paths(own, path.parent)
        grid["base"] = [own["base"] for own in bases]
    for own in by_method.values() if isinstance(by_method, dict) else ():
        if isinstance(own, dict):
            resolve_paths(own, path.parent)
    for other in others if isinstance(others, list) else ():
        if isinstance(other, dict) and isinstance(other.get("folders"), list):
            other["folders"] = [
                str((path.parent / folder).resolve()) if isinstance(folder, str) else folder
                for folder in other["folders"]
            ]
    for override in overrides:
        apply_override(content, override)
    return parse_experiment(content, str(path))


def parse_experiment(content: Mapping[str, Any], where: str) -> Experiment:
    """Check an experiment's content and form its cells; `where` begins the error message.

    Raises:
        ConfigError: as `load_experiment`.
    """
    file, problems = None, []
    try:
        file = _File.model_validate(dict(content))
    except ValidationError as error:
        problems += [
            f"  - {'.'.join(str(part) for part in p['loc'])}: {p['msg'][0].lower()}{p['msg'][1:]}"
            for p in error.errors()
        ]
    evaluation, settings = content.get("evaluation", {}), None
    if isinstance(evaluation, dict):
        try:
            settings = parse_settings(evaluation, "evaluation")
        except ConfigError as error:
            problems += str(error).splitlines()[1:]
    if file is not None:
        try:  # now, rather than after days of training
            require_metrics(file.primary)
        except ConfigError as error:
            problems.append(f"  - primary: {error}")
    if file is None or settings is None or problems:
        raise ConfigError("\n".join([f"{where}:", *problems]))
    for axis, values in file.grid.items():
        if axis not in AXES:
            near = difflib.get_close_matches(axis, AXES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{where}: grid.{axis} is not an axis; {hint}axes are {', '.join(AXES)}")
        if not values or any(values.count(value) > 1 for value in values):
            raise ConfigError(f"{where}: grid.{axis} = {values}: expected different values, at least one")
    methods = file.grid.get("method", [file.training.get("method")])
    for method in file.by_method:
        if method not in methods:
            raise ConfigError(f"{where}: by_method.{method}: the experiment has no such method; it has {methods}")
    axes = [axis for axis in AXES if axis in file.grid]
    naming = [axis for axis in axes if axis != "seed" and len(file.grid[axis]) > 1] or axes[:1]
    cells = []
    # Seeds change last, so that an experiment that is not finished has all systems of the first ones.
    outwards = sorted(axes, key=lambda axis: axis != "seed")
    for combination in itertools.product(*(file.grid[axis] for axis in outwards)):
        given = dict(zip(outwards, combination, strict=True))
        point = {axis: given[axis] for axis in axes}
        system = " ".join(_word(axis, point[axis]) for axis in naming if axis in point)
        name = f"{system} seed {point['seed']}" if "seed" in point else system
        own = file.by_method.get(str({**file.training, **point}.get("method")), {})
        training = {**file.training, **own, **point}
        config = parse_config(_for_method(training), f"{where}, cell {name!r}")
        cells.append(Cell(slug(name), system, point, config))
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: two cells are named {max(names, key=names.count)!r}; reword the axes' values")
    families = _families(file, cells, where)
    return Experiment(file.name, tuple(cells), tuple(families), settings, file.results, file.primary)


def _families(file: _File, cells: Sequence[Cell], where: str) -> list[Family]:
    """One family of all systems if the reference is a name; else families that differ in the reference's axes only."""
    if isinstance(file.reference, str):
        systems = _by_system(cells)
        known = {*systems, *(other.name for other in file.results)}
        if file.reference not in known:
            raise ConfigError(
                f"{where}: reference = {file.reference!r} is not one of the systems; choose one of {sorted(known)}"
            )
        return [Family("", file.reference, systems)]
    for axis, value in file.reference.items():
        if value not in file.grid.get(axis, []):
            raise ConfigError(f"{where}: reference.{axis} = {value!r} is not in grid.{axis} = {file.grid.get(axis)}")
    common: dict[str, list[Cell]] = {}
    for cell in cells:
        rest = [axis for axis in cell.point if axis not in (*file.reference, "seed") and len(file.grid[axis]) > 1]
        common.setdefault(" ".join(_word(axis, cell.point[axis]) for axis in rest), []).append(cell)
    return [
        Family(
            name,
            next(c.system for c in members if all(c.point[axis] == v for axis, v in file.reference.items())),
            _by_system(members),
        )
        for name, members in common.items()
    ]


def _by_system(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.system, []).append(cell)
    return found


def slug(name: str) -> str:
    """A name in the characters that folder names may have."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def _for_method(content: dict[str, Any]) -> dict[str, Any]:
    """A configuration for one method: tables by stage lose the stages that only other methods have."""
    method = METHODS.get(str(content.get("method")))
    if method is None:
        return content
    stages = {stage.name for stage in method.stages}
    foreign = {stage.name for other in METHODS.values() for stage in other.stages} - stages
    found = {}
    for key, value in content.items():
        if isinstance(value, dict) and set(value) & foreign:
            value = {stage: setting for stage, setting in value.items() if stage not in foreign}
        if value != {} and not (key == "rationale_source" and not any(s.learns_rationales for s in method.stages)):
            found[key] = value
    return found


def _word(axis: str, value: Any) -> str:
    """A value of an axis in one word."""
    if axis == "train_records":
        return f"n={value}"
    if isinstance(value, dict):
        return ">".join(map(str, value.values()))
    return Path(value).name if axis == "base" else str(value)
