"""Writing that is never half done: a folder or file appears at its final place complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from reason2decide.errors import OutputError


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_absent(out: Path, marker: str | None = None, *, force: bool = False) -> None:
    """Raise `OutputError` if `out` exists, is no empty folder and may not be replaced.

    With `force` it may, but a folder only if it holds `marker`, the file by which this kind of output is known: a
    mistyped --out must not delete somebody's work.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise OutputError(f"the output {out} exists already; give another path, or --force to replace it")
    if marker is not None and not (out / marker).exists():
        raise OutputError(f"{out} is not what this command makes (it has no {marker}), so --force will not delete it")


def _cannot_create(out: Path, error: OSError) -> OSError | OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error  # a full disk has a message of its own
    return OutputError(f"cannot create {out}: {error.strerror}: {error.filename}")


@contextlib.contextmanager
def new_folder(out: Path, marker: str, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside `out`; on success rename it to `out`, on failure remove it.

    What `out` holds is replaced (see `require_absent`) only once the new folder is complete.

    Raises:
        OutputError: as `require_absent`, or the folder cannot be made.
    """
    require_absent(out, marker, force=force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise _cannot_create(out, error) from None
    try:
        yield partial
        partial.chmod(0o755)
        if out.exists():
            discarded = Path(tempfile.mkdtemp(prefix=f".{out.name}.replaced-", dir=out.parent))
            out.rename(discarded / out.name)
            partial.rename(out)
            shutil.rmtree(discarded)
        else:
            partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_file(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file beside `out`; on success move it to `out`, on failure remove it.

    Raises:
        OutputError: `out` exists and `force` is false, or its parent cannot be made.
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
        partial.chmod(0o644)
        partial.replace(out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
