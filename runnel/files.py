"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from runnel.errors import InputError


def writable(path: str | os.PathLike[str]) -> Path:
    """The whole path of a file that can be written there, so that long work is not done in vain. Raises InputError."""
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise InputError(f"'{path}' is not a file that can be replaced; name another one.")
    if not target.parent.is_dir():
        raise InputError(f"'{path}' cannot be written: there is no folder '{target.parent}'; create it first.")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"'{path}' cannot be written: its folder is read-only; choose another one.")
    return target


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file beside ``path`` that takes its name at the end; on any exception, Ctrl-C too, it is removed.

    Raises InputError where the file cannot be written.
    """
    target = writable(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise InputError(f"'{path}' cannot be written: {error.strerror}; choose another folder.") from error
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(handle, 0o666 & ~_umask())
            os.fsync(handle)
        os.replace(name, target)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError):
            raise InputError(f"'{path}' cannot be written: {error.strerror}.") from error
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
