"""Where a board is: ssh://[user@]host[:port][:folder], or serial:///dev/ttyUSB0[?baud=115200&dir=folder]."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from runnel.errors import InputError

BAUD = 115200
FOLDERS = "runnel"  # in the home there; each model has one below it
_SSH = re.compile(r"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?"
                  r"(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:]+\])"
                  r"(?::(?P<port>\d{1,5}))?(?:/?|:(?P<folder>.+))\Z")  # fmt: skip
_SERIAL = re.compile(r"serial://(?P<device>/[^?]+)(?:\?(?P<options>.*))?\Z")
_FOLDER = re.compile(r"[A-Za-z0-9_./ @+=,-]{1,200}\Z")
_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class SshAddress:
    """folder: relative to the home there, or absolute; None where it follows from the model."""

    host: str
    user: str | None
    port: int | None
    folder: str | None


@dataclass(frozen=True)
class SerialAddress:
    """device: a tty here. baud: bits a second. folder: as in SshAddress."""

    device: str
    baud: int
    folder: str | None


Address = SshAddress | SerialAddress


def parse(text: str) -> Address:
    """The address that a person wrote. Raises InputError."""
    if match := _SSH.match(text):
        port = match["port"]
        if port and not 0 < int(port) < 65536:
            raise InputError(f"'{port}' is no port; say ssh://user@host:22, or ./{port} for a folder of that name.")
        return SshAddress(
            match["host"].strip("[]"), match["user"], int(port) if port else None, folder(match["folder"])
        )
    if match := _SERIAL.match(text):
        options = dict(parse_qsl(match["options"] or "", keep_blank_values=True))
        if odd := sorted(options.keys() - {"baud", "dir"}):
            raise InputError(f"a serial line has the options baud and dir, not '{odd[0][:40]}'.")
        baud = options.get("baud", str(BAUD))
        if not re.match(r"\d{3,7}\Z", baud):
            raise InputError(f"'{baud[:40]}' is no rate of a serial line; say baud=115200.")
        return SerialAddress(match["device"], int(baud), folder(options.get("dir")))
    raise InputError(
        f"'{text[:200]}' is no board; say ssh://user@host[:port][:folder] or serial:///dev/ttyUSB0[?baud=115200]."
    )


def folder(text: str | None) -> str | None:
    """A folder on a board, checked: plain characters and no '..'. Raises InputError."""
    if text is None:
        return None
    plain = text.removeprefix("~/")
    if not _FOLDER.match(plain) or ".." in plain.split("/") or plain.startswith("-"):
        raise InputError(f"'{text[:200]}' cannot be a folder on the board; use letters, digits and . _ - / in it.")
    return plain.rstrip("/") or "/"


def folder_of(name: str) -> str:
    """The folder of a model, by its name."""
    return f"{FOLDERS}/{_NAME.sub('-', name).strip('-.')[:64] or 'model'}"
