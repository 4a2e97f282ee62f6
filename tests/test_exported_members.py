"""What the package exports is what it says, in alphabetical order, each with a docstring."""

from __future__ import annotations

import inspect

import reason2decide


def test_all_names_are_there_sorted_and_described() -> None:
    names = reason2decide.__all__
    assert names == sorted(names)
    for name in names:
        member = getattr(reason2decide, name)
        if inspect.isclass(member) or inspect.isfunction(member):
            assert inspect.getdoc(member), name
            for attribute, value in vars(member).items() if inspect.isclass(member) else ():
                if inspect.isfunction(value) and not attribute.startswith("_"):
                    assert inspect.getdoc(value), f"{name}.{attribute}"


def test_nothing_else_is_exported() -> None:
    assert sorted(reason2decide._MODULES) == sorted(set(reason2decide.__all__) - {"__version__"})
    assert dir(reason2decide) == sorted(reason2decide.__all__)
