from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import Forks, Group
from llm_server import LlmServer, running
from llm_toy import write_calls
from report_data import CHROMIUM
from reviewing import Person, Site, filled, people
from toy import write_toy

from reason2decide.data.dataset_folder import DatasetFolder
from reason2decide.data.defaults import CALL_LOG
from reason2decide.llm.client.log import CallLog
from reason2decide.review.accounts import Accounts
from reason2decide.review.store import Store
from reason2decide.serve.audit import AuditLog
from reason2decide.serve.batching import Batcher


def _beside_the_repository(name: str, what: str) -> Path:
    folder = Path(__file__).resolve().parents[1].parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"no {what} at {folder}: they are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public data beside the repository; tests of real files skip where it is absent."""
    return _beside_the_repository("data", "public data files")


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Inputs that once failed, beside the repository; tests that read them skip where they are absent."""
    return _beside_the_repository("cases", "inputs that once failed")


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    if CHROMIUM is None:
        pytest.skip("needs a browser, which CI installs: no chromium, chromium-browser or google-chrome is on PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running_server() -> Iterator[LlmServer]:
    """A server of language models whose answers follow rules."""
    with running() as server:
        yield server


@pytest.fixture
def server(running_server: LlmServer) -> LlmServer:
    """That server, with nothing left of earlier tests."""
    running_server.reset()
    return running_server


@pytest.fixture
def log(tmp_path: Path) -> Iterator[CallLog]:
    """An empty log of calls."""
    with CallLog(tmp_path / "calls.sqlite") as log:
        yield log


@pytest.fixture(scope="module")
def written_calls(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    """Notes that the server's rules decide."""
    return write_calls(tmp_path_factory.mktemp("data") / "calls")


@pytest.fixture
def calls(written_calls: DatasetFolder) -> DatasetFolder:
    """Those notes, to read only, about which nothing has been asked yet."""
    for path in written_calls.path.glob(f"{CALL_LOG}*"):
        path.unlink()
    return written_calls


@pytest.fixture(scope="module")
def batcher() -> Iterator[Batcher]:
    """What makes batches of a server's calls."""
    own = Batcher(max_requests=16, max_batch=8, max_streams=1)
    yield own
    own.close()


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLog]:
    """An audit record."""
    with AuditLog(tmp_path / "audit.sqlite", 30) as log:
        yield log


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store that two people may review, without passwords."""
    with Store(tmp_path / "s.sqlite") as store:
        accounts = Accounts(store, 60)
        for name in ("nina", "olga"):
            accounts.add(name, "reviewer", None)
        yield store


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site with four decided cases."""
    return filled(tmp_path)


@pytest.fixture
def nina(site: Site) -> Iterator[Person]:
    """A reviewer at that site."""
    with people(site, "nina") as (nina,):
        yield nina
