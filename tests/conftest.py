from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Forks, Group
from toy import write_toy

from reason2decide.data.records import DatasetFolder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public data beside the repository; tests of real files skip where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no public data at {folder}: it is not part of the repository")
    return folder


@pytest.fixture(scope="session")
def group() -> Iterator[Group]:
    """Two servers of `r2d` processes, which can train together."""
    members = Group()
    yield members
    members.close()


@pytest.fixture(scope="session")
def forks(group: Group) -> Forks:
    """One server of `r2d` processes."""
    return group.members[0]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    """The toy dataset, to read only."""
    return write_toy(tmp_path_factory.mktemp("data") / "toy")
