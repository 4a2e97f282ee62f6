"""Every name in docs/paper_map.md exists: a reader who follows the paper arrives somewhere."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from reason2decide.training.config import Config

MAP = (Path(__file__).parents[1] / "docs" / "paper_map.md").read_text("utf-8")
NAMES = sorted(set(re.findall(r"`(reason2decide\.[\w.]+)`", MAP)))


def test_the_map_names_the_method() -> None:
    assert len(NAMES) >= 15


@pytest.mark.parametrize("name", NAMES)
def test_name_exists(name: str) -> None:
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if found is Config:
                assert part in Config.model_fields
                return
            assert hasattr(found, part), f"{name}: there is no {part}"
            found = getattr(found, part)
        return
    raise AssertionError(f"{name}: no such module")
