"""Files by path or URL: on a disk, or on object storage through fsspec."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar, cast

from reason2decide.console import say, warn
from reason2decide.data.sources.rows import FORMATS, SUFFIXES
from reason2decide.errors import DataError, MissingExtraError, OutputError, UserError
from reason2decide.files import locked, means_full_disk

T = TypeVar("T")
# Protocol of a URL -> the package that reads it, and the extra that installs it.
DRIVERS = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "abfs": ("adlfs", "abfs"),
    "abfss": ("adlfs", "abfs"),
    "az": ("adlfs", "abfs"),
    "hdfs": ("pyarrow", "hdfs"),
}
URL = re.compile(r"([a-z][a-z0-9+.-]+)://")
MAGIC = re.compile(r"[*?\[]")
FIRST_CONTACT = 30.0  # ours: seconds in which a storage must answer for the first time
SETTLED = 2.0  # ours: seconds after which two runs that begin at once have both written their lease
LEASE = 20.0  # ours: seconds after which a run that gives no sign on object storage counts as ended
LOCKS = (".lock", ".lease.json")  # files that hold a folder: on a disk, on object storage
LIBRARIES = ("aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "requests", "urllib3")
FORBIDDEN = ("NoCredentialsError", "PartialCredentialsError", "ClientAuthenticationError", "RefreshError")
LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def place(path: str) -> Path:
    """A path, or what behaves like one for a URL.

    Raises:
        MissingExtraError: the package for such URLs is not installed.
        UserError: such URLs are not read.
    """
    found = URL.match(path)
    if found is None or found[1] == "file":
        return Path(path.removeprefix("file://"))
    if found[1] not in DRIVERS:
        protocols = ", ".join(f"{name}://" for name in DRIVERS)
        raise UserError(f"{path} cannot be opened; expected a path, or a URL that begins with one of {protocols}")
    driver, extra = DRIVERS[found[1]]
    for module in ("upath", "fsspec", driver):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(module, extra, path)
    from upath import UPath

    return cast(Path, UPath(path))  # has the methods of a Path


def lies_in(folder: Path, given: str) -> bool:
    """Whether what is written to a folder would be read as input, however the paths of both are written."""
    fixed, pattern = _divided(given)
    root = place(fixed)
    if is_local(folder) and is_local(root):
        folder, root = folder.resolve(), root.resolve()
    own, below = f"{folder}/", f"{str(root).rstrip('/')}/"
    if not own.startswith(below):
        return False
    inner, parts = [part for part in own[len(below) :].split("/") if part], pattern.split("/")
    return not pattern or "**" in parts or (len(parts) == len(inner) + 1 and all(map(fnmatch, inner, parts)))


def is_local(path: Path) -> bool:
    """Whether a path is on a disk of this machine, or mounted like one."""
    return isinstance(path, Path)


def found_files(given: str) -> list[tuple[str, Path]]:
    """The files that a path, a folder or a glob names, with their names below its fixed part, in order of these names.

    Of a folder, all files of known formats at any depth, but hidden ones and those whose names begin with `_`.

    Raises:
        DataError: there is none.
        UserError: the storage cannot be reached or read.
    """
    fixed, pattern = _divided(given)
    root = place(fixed)

    def look() -> list[tuple[str, Path]]:
        if pattern:
            found = [path for path in root.glob(pattern) if path.is_file()]
        elif root.is_dir():
            found = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
        else:
            return [(root.name, root)] if root.exists() else []
        named = ((path.relative_to(root).as_posix(), path) for path in found)
        return sorted(named if pattern else ((name, path) for name, path in named if not _hidden(name)))

    files = first_contact(look, given)
    if not files:
        if pattern:
            raise DataError(f"{given} matches no file; check the pattern, and quote it so that the shell leaves it")
        if first_contact(root.is_dir, given):
            raise DataError(f"{given} holds no file to read; expected {FORMATS} files in it")
        raise DataError(f"there is no file {given}; check the path")
    return files


def _divided(given: str) -> tuple[str, str]:
    """The fixed part of a glob and its pattern, which is empty of a plain path."""
    head = URL.match(given)
    parts = given[head.end() :].split("/") if head else given.split("/")
    fixed = next((index for index, part in enumerate(parts) if MAGIC.search(part)), None)
    if fixed is None or (head is None and Path(given).exists()):
        return given, ""
    root = "/".join(parts[:fixed]) or ("/" if given.startswith("/") else ".")
    return (head[0] if head else "") + root, "/".join(parts[fixed:])


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/"))


def first_contact(call: Callable[[], T], path: object) -> T:
    """`call()`, which asks a storage for the first time: what can be wrong with it is said, and within seconds.

    Raises:
        UserError: no answer within 30 seconds, no permission, or another failure.
    """
    answer: list[T] = []
    failure: list[BaseException] = []

    def ask() -> None:
        try:
            answer.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(FIRST_CONTACT)
    if thread.is_alive():
        raise UserError(f"{path} has not answered for {FIRST_CONTACT:.0f} s; check the address and the network")
    if failure:
        raise explained(failure[0], path)
    return answer[0]


def explained(error: BaseException, path: object) -> BaseException:
    """A user's error for a failure of a storage; other errors as they are."""
    if isinstance(error, PermissionError) or type(error).__name__ in FORBIDDEN:
        return UserError(
            f"no permission for {path} ({_line(error)}): the credentials that are found here may not list, read or "
            "write there; ask for that right, or give others as the storage's own tools take them"
        )
    if isinstance(error, FileNotFoundError):
        return DataError(f"there is no {path} ({_line(error)}); check its name")
    return UserError(f"{path} cannot be reached ({_line(error)}); check the address") if passing(error) else error


def passing(error: BaseException) -> bool:
    """Whether an error is of the storage and may pass, so that another try is worth it."""
    if isinstance(error, LASTING) or means_full_disk(error) or type(error).__name__ in FORBIDDEN:
        return False
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in LIBRARIES


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


class Patience:
    """Waits between tries while a storage fails, a second at first and longer each time.

    Args:
        seconds: how long it may fail before that is a user's error.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """The storage has answered: the next failure is a first one."""
        self._waited, self._pause = 0.0, 1.0

    def wait(self, error: Exception) -> None:
        """Wait before another try, or raise `error` if it will not pass, or has not for too long."""
        if not passing(error):
            raise error
        if self._waited >= self._seconds:
            raise UserError(
                f"the storage has failed for {self._seconds:.0f} s ({_line(error)}); check it, then --resume goes on"
            ) from None
        pause = min(self._pause, self._seconds - self._waited)
        warn(f"the storage failed ({_line(error)}); trying again in {pause:.0f} s")
        time.sleep(pause)
        self._waited, self._pause = self._waited + pause, min(2 * self._pause, 30)

    def insist(self, call: Callable[[], T]) -> T:
        """`call()`, again and again while the storage fails."""
        while True:
            try:
                answer = call()
            except Exception as error:
                self.wait(error)
            else:
                self.renew()
                return answer


def partial_name(name: str) -> str:
    """The name of a file that is being written."""
    return f".{name}.partial"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file aside, flush it to the disk and rename it: it appears complete, or not at all."""
    aside = path.with_name(partial_name(path.name))
    try:
        with aside.open("wb") as stream:
            stream.write(content)
            if is_local(path):
                stream.flush()
                os.fsync(stream.fileno())
        if is_local(path):
            aside.replace(path)
        else:
            remote: Any = path
            remote.fs.mv(remote.with_name(aside.name).path, remote.path)
    except BaseException:
        with contextlib.suppress(Exception):
            aside.unlink()
        raise


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder for this run; it is released however the process ends.

    Raises:
        OutputError: another run holds it.
    """
    problem = f"another run writes into {folder}; wait for its end, or give another --out"
    if is_local(folder):
        with locked(folder / LOCKS[0], problem):
            yield
        return
    with _lease(folder / LOCKS[1], problem):
        yield


def _fresh(path: Any) -> bytes | None:
    """What a file on object storage holds at this moment, whatever was read before; None if there is none."""
    path.fs.invalidate_cache(path.parent.path)
    try:
        return bytes(path.fs.cat_file(path.path))
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _lease(path: Path, problem: str) -> Iterator[None]:
    """Hold a file that is written anew every few seconds: one that no longer changes is of a run that has ended."""
    owner = {"host": socket.gethostname(), "process": os.getpid(), "run": uuid.uuid4().hex}
    beat = 0

    def renew() -> None:
        nonlocal beat
        beat += 1
        path.write_text(json.dumps({**owner, "beat": beat}))

    before = _fresh(path)
    if before is not None:
        say(f"{path} is of another run; waiting {LEASE:.0f} s to see whether that still lives")
        time.sleep(LEASE)
        if _fresh(path) not in (None, before):
            raise OutputError(f"{problem} ({before.decode('utf-8', 'replace')})")

    def is_own() -> bool:
        held = _fresh(path)
        return held is None or json.loads(held).get("run") == owner["run"]

    renew()
    time.sleep(SETTLED)  # of two that have begun at once, the first sees that the other has written over it
    if not is_own():
        raise OutputError(problem)
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(LEASE / 4):
            with contextlib.suppress(Exception):  # the storage may fail for a time
                if not is_own():  # this one was taken for dead, as after a machine's sleep
                    warn(f"another run has taken over {path.parent}; its parts are the same, stop one of the two")
                    return
                renew()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):
            path.unlink()
