"""Batches on object storage: a real S3 server that fails for a time, and storage that cannot be reached or read."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from batches import bytes_of, exported, write_folder
from forks import Forks
from s3_server import KEYS, S3Server, running_s3
from serving import free_port

from reason2decide.batch import storage
from reason2decide.batch.storage import Patience, alone_in, found_files, place
from reason2decide.errors import OutputError, UserError

SIZE = ("--rows-per-part", "10", "--workers", "1")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """A running server, of which this process knows."""
    with running_s3() as server:
        yield server


@pytest.fixture(scope="module")
def cases(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of cases, which the bucket has too."""
    folder = write_folder(tmp_path_factory.mktemp("storage") / "cases", 120)
    for path in folder.rglob("*.*"):
        boto3.client("s3").upload_file(path, "ward", f"cases/{path.relative_to(folder).as_posix()}")
    return folder


@pytest.fixture(scope="module")
def on_disk(cases: Path, forks: Forks) -> dict[str, bytes]:
    """The parts of these cases, computed without object storage."""
    out = cases.parent / "out"
    assert forks.run("predict", exported(), cases, "--out", out, *SIZE).returncode == 0
    return bytes_of(out)


def test_parts_on_object_storage_are_those_on_disk(
    s3: S3Server, forks: Forks, cases: Path, on_disk: dict[str, bytes]
) -> None:
    command = ("predict", exported(), "s3://ward/cases", "--out", "s3://ward/out", *SIZE)
    done = forks.run(*command, env=s3.environment)
    assert done.returncode == 0, done.stderr
    assert "120 rows read = 120 decided + 0 failed, in 12 parts" in done.stderr
    assert bytes_of("s3://ward/out") == on_disk
    boto3.client("s3").delete_object(Bucket="ward", Key="out/part-000004.parquet")
    assert "11 of 12 parts already" in forks.run(*command, env=s3.environment).stderr
    # The same files may lie elsewhere when the run goes on.
    elsewhere = ("predict", exported(), cases, "--out", "s3://ward/out", *SIZE, "--resume")
    assert "11 of 12 parts are there already" in forks.run(*elsewhere, env=s3.environment).stderr
    assert bytes_of("s3://ward/out") == on_disk


def test_globs_of_urls(cases: Path) -> None:
    assert [name for name, _ in found_files("s3://ward/cases/**/*.jsonl")] == ["b/rows.jsonl"]
    assert [name for name, _ in found_files("s3://ward/cases/?.*")] == ["a.csv", "c.parquet"]
    assert [name for name, _ in found_files("s3://ward/cases/a.csv")] == ["a.csv"]
    assert [name for name, _ in found_files(f"{cases}/*/rows.*")] == ["b/rows.jsonl"]


def test_storage_may_fail_for_a_time(s3: S3Server, forks: Forks, on_disk: dict[str, bytes]) -> None:
    def fail_for_seconds() -> None:
        client = boto3.client("s3")
        while not client.list_objects_v2(Bucket="ward", Prefix="out2/part-").get("KeyCount"):
            time.sleep(0.02)
        s3.stop()
        time.sleep(12)  # longer than its own library tries
        s3.start()

    thread = threading.Thread(target=fail_for_seconds)
    thread.start()
    done = forks.run("predict", exported(), "s3://ward/cases", "--out", "s3://ward/out2", *SIZE, env=s3.environment)
    thread.join()
    assert done.returncode == 0, done.stderr
    assert "the storage failed" in done.stderr
    assert bytes_of("s3://ward/out2") == on_disk


def refused(forks: Forks, cases: object, out: object, env: dict[str, str]) -> str:
    """The message of a refusal, which comes within half a minute."""
    done = forks.run("predict", exported(), cases, "--out", out, *SIZE, env=env)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.seconds < 35
    return done.stderr


def test_storage_that_cannot_be_used_is_named(forks: Forks, cases: Path, tmp_path: Path, s3: S3Server) -> None:
    assert "there is no file s3://ward/absent.csv" in refused(forks, "s3://ward/absent.csv", tmp_path, s3.environment)
    assert "there is no" in refused(forks, "s3://absent/cases", tmp_path, s3.environment)
    assert "reason2decide[gcs]" in refused(forks, "gs://ward/cases", tmp_path, {})
    assert "a URL that begins with one of s3://" in refused(forks, "nothing://ward/cases", tmp_path, {})
    nobody = {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    where: list[tuple[object, object]] = [("s3://ward/cases", tmp_path), (cases, "s3://ward/out3")]
    for given, out in where:
        told = refused(forks, given, out, nobody)  # by the library's own tries, which take longer on a busy machine
        assert "cannot be reached" in told or "has not answered for 30 s; check the address" in told


def test_a_bucket_that_is_forbidden_is_named(forks: Forks, cases: Path, tmp_path: Path) -> None:
    class Forbidding(http.server.BaseHTTPRequestHandler):
        """Answers as S3 does without the right."""

        def _refuse(self) -> None:
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = _refuse

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
        assert "no permission for s3://ward/cases" in refused(forks, "s3://ward/cases", tmp_path, env)
        assert "no permission for s3://ward/out" in refused(forks, cases, "s3://ward/out", env)
        server.shutdown()


def test_a_run_on_object_storage_that_lives_keeps_others_out(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LEASE", 1.0)
    folder = place("s3://ward/leased")
    with (
        alone_in(folder),
        pytest.raises(OutputError, match="another run writes into s3://ward/leased"),
        alone_in(folder),
    ):
        raise AssertionError("entered twice")
    assert not (folder / ".lease.json").exists()
    dead = json.dumps({"host": "gone", "process": 1, "run": "x", "beat": 3})
    (folder / ".lease.json").write_text(dead)
    with alone_in(folder):
        assert (folder / ".lease.json").read_text() != dead


def test_of_two_runs_that_begin_at_once_one_goes_on(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen no lease; the later one has written over the earlier one's."""
    monkeypatch.setattr(storage, "LEASE", 1.0)
    monkeypatch.setattr(storage, "SETTLED", 0.5)
    folder = place("s3://ward/at-once")
    read, asked = storage._fresh, threading.local()
    both = threading.Barrier(2)

    def together(path: Any) -> bytes | None:
        found = read(path)
        if not hasattr(asked, "once"):
            asked.once = both.wait(5)
        return found

    monkeypatch.setattr(storage, "_fresh", together)

    def run() -> str:
        try:
            with alone_in(folder):
                time.sleep(1)
                return "in"
        except OutputError:
            return "refused"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(lambda _: run(), range(2))) == ["in", "refused"]


def test_patience_ends() -> None:
    patience = Patience(0.2)
    tries = []

    def failing() -> None:
        tries.append(time.monotonic())
        raise ConnectionResetError("again")

    with pytest.raises(UserError, match=r"failed for 0 s \(ConnectionResetError: again\).*--resume goes on"):
        patience.insist(failing)
    assert len(tries) == 2
    for lasting in (PermissionError("no"), FileNotFoundError("no"), OSError(28, "No space left on device")):
        with pytest.raises(OSError, match=r"no|space"):
            Patience(9).wait(lasting)
