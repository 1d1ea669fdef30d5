"""Boards and chips: one TOML each, and the loader. A target is data; to add one, add its file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from runnel.errors import InputError
from runnel.targets.local import this_machine
from runnel.targets.schema import NATIVE, Accelerator, Target, parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent
MOST_BYTES = 64 << 10


def own_folder() -> Path:
    """Where a user's own targets are: ``$XDG_CONFIG_HOME/runnel/targets``, else under ``~/.config``."""
    home = os.environ.get("XDG_CONFIG_HOME")
    base = Path(home) if home and Path(home).is_absolute() else Path("~/.config").expanduser()
    return base / "runnel" / "targets"


def _files() -> dict[str, Path]:
    """The known targets' files by name; a user's own comes before one of the same name that is built in."""
    files = {path.stem: path for path in FOLDER.glob("*.toml")}
    return files | {path.stem: path for path in own_folder().glob("*.toml")}


def names() -> list[str]:
    """The known targets, in alphabetical order."""
    return sorted(_files())


def load(name: str) -> Target:
    """A target by its name, or by the path of its file (which has a slash in it or ends in .toml).

    Raises InputError, which says in one sentence what is wrong with the file or which targets are known.
    """
    files = _files()
    if "/" in name or name.endswith(".toml"):
        path = Path(name).expanduser()
    elif name in files:
        path = files[name]
    else:
        raise InputError(f"there is no target '{name}'; known are: {', '.join(sorted(files))}; or name a .toml file.")
    target = parse(path.stem, _table(path), str(path))
    return this_machine(target) if target.native else target


def _table(path: Path) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"the target's file '{path}' cannot be read: {error.strerror}.") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"'{path}' is larger than any target's file; name a TOML file of a board.")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"'{path}' is not a TOML file: {' '.join(str(error).split())}.") from None


__all__ = ["NATIVE", "Accelerator", "Target", "load", "names", "own_folder", "parse", "this_machine"]
