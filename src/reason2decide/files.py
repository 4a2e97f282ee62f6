"""Atomic writing: a folder or file appears at its final path complete, or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from reason2decide.errors import OutputError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2(2)

# Read once, as setting it is the only way to read it.
UMASK = os.umask(0o077)
os.umask(UMASK)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_absent(out: Path, marker: str | None = None, *, force: bool = False) -> None:
    """Raise `OutputError` if `out` exists, is not an empty folder and may not be replaced.

    With `force` it may, but a folder only if it contains `marker`, the file that identifies this kind of output: a
    mistyped --out must not delete somebody's work.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise OutputError(f"the output {out} already exists; give another path, or --force to replace it")
    if marker is not None and not (out / marker).exists():
        raise OutputError(f"{out} was not written by this command (it has no {marker}), so --force will not delete it")


def means_full_disk(error: BaseException) -> bool:
    """Whether an error means that space ran out: on the disk, in the user's quota, or in a file of limited size."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    # safetensors, torch and SQLite write from compiled code and raise their own errors.
    signs = ("No space left on device", "StorageFull", "File too large", "database or disk is full")
    return any(sign in str(error) for sign in signs)


def _cannot_create(out: Path, error: OSError) -> OSError | OutputError:
    if error.errno in FULL:
        return error  # a full disk has its own message
    return OutputError(f"cannot create {out}: {error.strerror}: {error.filename}")


@contextlib.contextmanager
def new_folder(out: Path, marker: str, *, force: bool = False, keep: str | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder next to `out`; on success rename it to `out`, on failure remove it.

    An existing `out` is replaced (see `require_absent`) only once the new folder is complete, and at once: whoever
    looks, or kills this process, finds one of the two. Files of the old folder that match the pattern `keep` are in the
    new one too. Its permissions are those that the umask leaves.

    Raises:
        OutputError: as `require_absent`, or the folder cannot be created.
    """
    require_absent(out, marker, force=force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise _cannot_create(out, error) from None
    try:
        yield partial
        partial.chmod(0o777 & ~UMASK)
        _sync(partial)  # otherwise a power cut could leave the name without the content
        if out.exists():
            for kept in out.glob(keep) if keep else ():
                link_or_copy(kept, partial / kept.name)
            _exchange(partial, out)
            shutil.rmtree(partial)
        else:
            partial.rename(out)
        _sync_entry(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _exchange(one: Path, other: Path) -> None:
    """Let two paths swap what they name, at once where the system can (Linux), else by three renames."""
    with contextlib.suppress(AttributeError, OSError):
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
            return
    between = Path(tempfile.mkdtemp(prefix=f".{other.name}.replaced-", dir=other.parent)) / other.name
    other.rename(between)
    one.rename(other)
    between.rename(one)
    between.parent.rmdir()


def _sync(folder: Path) -> None:
    """Flush everything in a folder to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync_entry(path)


def _sync_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the file system has no hard links; neither may be changed afterwards."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def remove_folder(folder: Path) -> None:
    """Remove a folder, which is renamed first so that its name never refers to half of it."""
    if folder.exists():
        discarded = Path(tempfile.mkdtemp(prefix=f".{folder.name}.removed-", dir=folder.parent))
        folder.rename(discarded / folder.name)
        shutil.rmtree(discarded)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of a killed program from a folder that only this program writes to."""
    # The last pattern is from safetensors, which writes a temporary file next to its target.
    for pattern in (".*.partial-*", ".*.replaced-*", ".*.removed-*", ".tmp??????"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def locked(path: Path, problem: str) -> Iterator[None]:
    """Hold the lock file `path` for this process; it is released however the process ends.

    Raises:
        OutputError: another process holds it; the message is `problem` and that process.
    """
    import fcntl  # absent on Windows, where everything but training works

    with path.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise OutputError(f"{problem} ({stream.read().strip() or 'another process'})") from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield


@contextlib.contextmanager
def new_file(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file next to `out`; on success move it to `out`, on failure remove it.

    Only its owner may read the file: it may contain health text, and stands alone.

    Raises:
        OutputError: `out` exists and `force` is false, or its parent cannot be created.
    """
    require_absent(out, force=force)
    if out.is_dir():
        raise OutputError(f"the output {out} is a folder; give the path of a file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.partial-", dir=out.parent)
    except OSError as error:
        raise _cannot_create(out, error) from None
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.replace(out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
