"""Boards and chips: one TOML each, and the loader. A target is data; to add one, add its file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from runnel.errors import InputError, InternalError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent
NATIVE = "native"  # a value that is read off this machine when a model is compiled


@dataclass(frozen=True)
class Target:
    """What a bundle is made for. triple, cpu and features are LLVM's; NATIVE stands for this machine's."""

    name: str
    summary: str
    arch: str
    os: str
    triple: str
    cpu: str
    features: tuple[str, ...]


def names() -> list[str]:
    """The known targets, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Target:
    """The target of that name. Raises InputError, which lists the known ones."""
    if name not in names():
        raise InputError(f"there is no target '{name}'; known are: {', '.join(names())}.")
    return parse(name, tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8")))


def parse(name: str, table: dict[str, Any]) -> Target:
    """A target from the table of its file; unknown and missing keys are errors."""
    known = {field.name for field in fields(Target)} - {"name"}
    if table.keys() != known:
        raise InternalError(f"targets/{name}.toml needs exactly the keys {', '.join(sorted(known))}.")
    return Target(name=name, **{**table, "features": tuple(table["features"])})
