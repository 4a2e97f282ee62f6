"""The layers of the package: lower subpackages never import higher ones, and no modules import each other in a cycle.

Every import counts, wherever it stands: at the top of a module, inside a function, or for a type checker only.
"""

from __future__ import annotations

import ast
import graphlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import reason2decide

PACKAGE = Path(reason2decide.__file__).parent
# From the ground up; a subpackage may import what stands before it. `docs/architecture.md` says what each is for.
LAYERS = (
    "ground",
    "method",
    "data",
    "model",
    "batch",
    "serve",
    "evaluation",
    "report",
    "review",
    "training",
    "export",
    "workflows",
    "llm",
    "api",
    "cli",
    "top",
)
GROUND = (
    "errors",
    "files",
    "console",
    "parallel",
    "signals",
    "syntax",
    "version",
)  # modules of the package's own folder
ONLY = {"serve": {"ground", "data", "model"}}  # HTTP serves what a model decides, and knows nothing else


def module_name(file: Path) -> str:
    """The dotted name below the package; the package itself is empty."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in PACKAGE.rglob("*.py") if "transformers_decision" not in file.parts}


def imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports."""
    for node in ast.walk(ast.parse(FILES[module].read_text("utf-8"))):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(level=0, module=str(origin)):
                # `from package import name`: the name is a module, or something that the package defines.
                names = [
                    longer if (longer := f"{origin}.{alias.name}").removeprefix("reason2decide.") in FILES else origin
                    for alias in node.names
                ]
            case ast.ImportFrom():
                pytest.fail(f"{module} has a relative import; this test, and readers, want whole names")
            case _:
                continue
        for name in names:
            if name.split(".")[0] == "reason2decide":
                yield name.removeprefix("reason2decide").removeprefix(".")


def layer(module: str) -> str:
    """The subpackage of a module."""
    first = module.split(".")[0]
    if first in GROUND:
        return "ground"
    return "top" if first in ("", "__main__") else first


GRAPH = {module: set(imports(module)) - {module} for module in FILES}


def test_every_module_stands_in_a_layer() -> None:
    assert {layer(module) for module in FILES} == set(LAYERS)


def test_no_layer_imports_a_higher_one() -> None:
    upward = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in sorted(others)
        if LAYERS.index(layer(other)) > LAYERS.index(layer(module))
        or (layer(module) in ONLY and layer(other) not in ONLY[layer(module)] | {layer(module)})
    ]
    assert not upward, "\n" + "\n".join(upward)


def test_no_two_classes_share_a_name() -> None:
    places = defaultdict(list)
    for module, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert not {name: modules for name, modules in places.items() if len(modules) > 1}


def test_no_import_cycle() -> None:
    try:
        list(graphlib.TopologicalSorter(GRAPH).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


def test_the_table_of_packages_in_the_docs_is_in_this_order() -> None:
    page = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text("utf-8")
    rows = [cells[1].strip().strip("`/") for line in page.splitlines() if len(cells := line.split("|")) == 5]
    assert [name for name in rows if name in LAYERS] == [name for name in LAYERS if name != "top"]
