"""Batches on a Ray cluster of several nodes: killed workers, nodes and drivers, and the parts of one machine."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from batches import bytes_of, exported, rows, write_folder
from forks import Forks
from ray.cluster_utils import Cluster
from test_batch_faults import SIZE, started, wait_for

from reason2decide.batch import Decider
from reason2decide.batch.cluster import RayCluster, _on_node
from reason2decide.batch.decider import BatchWork
from reason2decide.data.predictions import Prediction
from reason2decide.data.records import Record
from reason2decide.errors import UserError
from reason2decide.model.manifest import MANIFEST, described_bundle
from reason2decide.version import __version__


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes of one core, each with its own raylet."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="module")
def quiet_run(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> tuple[Path, dict[str, bytes]]:
    """A folder of cases, and its parts by an undisturbed run of this machine's processes."""
    home = tmp_path_factory.mktemp("ray")
    cases = write_folder(home / "cases", 600)
    done = forks.run("predict", exported(), cases, "--out", home / "out", *SIZE)
    assert done.returncode == 0, done.stderr
    return cases, bytes_of(home / "out")


def parts(out: Path) -> int:
    """The number of parts in a folder."""
    return len(list(out.glob("part-*")))


def deciding_processes() -> list[int]:
    """The processes of Ray that decide at this moment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::_on_node"):
                found.append(int(folder.name))
    return found


def test_killed_workers_and_nodes_change_nothing(
    cluster: Cluster, quiet_run: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    cases, expected = quiet_run
    lost = cluster.add_node(num_cpus=1)
    with started(cases, tmp_path / "out", "--ray", "--address", cluster.address) as process:
        for number in (2, 5):
            wait_for(lambda: parts(tmp_path / "out") >= number, process, 120)  # noqa: B023
            for victim in deciding_processes()[:2]:
                os.kill(victim, signal.SIGKILL)
        wait_for(lambda: parts(tmp_path / "out") >= 8, process, 120)
        assert process.poll() is None, "the run ended before its node was lost"
        cluster.remove_node(lost, allow_graceful=False)
        _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert bytes_of(tmp_path / "out") == expected


def test_a_driver_killed_on_the_cluster_is_ended_by_one_machine(
    cluster: Cluster, quiet_run: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    cases, expected = quiet_run
    chosen = random.Random(5)
    for _ in range(3):
        with started(cases, tmp_path / "out", "--ray", "--address", cluster.address) as process:
            before = parts(tmp_path / "out")
            wait_for(lambda: parts(tmp_path / "out") > before, process, 120)  # noqa: B023
            time.sleep(chosen.uniform(0, 0.2))
            process.kill()
    assert 0 < parts(tmp_path / "out") < 120
    with started(cases, tmp_path / "out") as process:
        assert process.wait(240) == 0
    assert bytes_of(tmp_path / "out") == expected


def test_nodes_get_the_model_by_its_content_and_need_the_same_version(cluster: Cluster) -> None:
    content = {name: (exported() / name).read_bytes() for name in (MANIFEST, *described_bundle(exported()).files)}
    sha256 = described_bundle(exported()).sha256
    with RayCluster(BatchWork(exported()), cluster.address):
        task = ray.remote(_on_node)
        model = [ray.put(content)]
        work = BatchWork(Path("/nowhere"))
        given = [Record(row["id"], row["text"]) for row in rows(0, 3)]
        found: Any = ray.get(task.remote(model, sha256, __version__, work, given))
        assert [type(own) for own in found] == [Prediction] * 3
        other = ray.get(task.remote(model, sha256, "0.0.1", work, given))
        assert isinstance(other, UserError)
        assert f"a node of the cluster has reason2decide {__version__}, this machine 0.0.1" in str(other)
    assert not ray.is_initialized()


def test_no_cluster_is_said(forks: Forks, tmp_path: Path, quiet_run: tuple[Path, dict[str, bytes]]) -> None:
    cases, _ = quiet_run
    command = ("predict", exported(), cases, "--out", tmp_path / "out", "--ray", "--address", "127.0.0.1:1")
    done = forks.run(*command)
    assert done.returncode == 2, done.stderr
    assert "no Ray cluster at 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_decider_is_a_stage_of_ray_data(cluster: Cluster) -> None:
    import pandas as pd
    import ray.data

    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    try:
        given = ray.data.from_pandas(pd.DataFrame(rows(0, 40)))
        stage = given.map_batches(
            Decider, fn_constructor_args=[str(exported())], batch_format="pandas", batch_size=10, concurrency=1
        )
        found = stage.to_pandas().sort_values("id").reset_index(drop=True)
    finally:
        ray.shutdown()
    expected = Decider(exported())(pd.DataFrame(rows(0, 40))).sort_values("id").reset_index(drop=True)
    for column in ("id", "predicted_label", "rationale", "deferred"):
        assert list(found[column]) == list(expected[column])
