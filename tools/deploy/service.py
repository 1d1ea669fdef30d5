"""A service that runs the current version on a board: from boot, again on failure, watched by a watchdog."""

from __future__ import annotations

import re
import shlex
from importlib.resources import files
from typing import Protocol

from runnel.errors import InputError

LOOK = """folder=$(cd {folder} && pwd -P) && printf '%s\\n' "$folder" "$(id -u)" "$HOME" """
WHERE = """
if [ "$(id -u)" = 0 ]; then ctl=systemctl; else
    ctl='systemctl --user'; export XDG_RUNTIME_DIR="${{XDG_RUNTIME_DIR:-/run/user/$(id -u)}}"
fi
command -v systemctl >/dev/null || {{ echo 'there is no systemd'; exit 3; }}
"""
INSTALL = (
    WHERE
    + """
mkdir -p {place} && cat > {unit}.part <<'RUNNEL_UNIT' && mv -f {unit}.part {unit} || exit 4
{text}RUNNEL_UNIT
$ctl daemon-reload && $ctl enable {name} || exit 5
[ "$(id -u)" = 0 ] || loginctl enable-linger || echo 'it starts at the first login only: sudo loginctl enable-linger'
"""
)
RESTART = (
    WHERE
    + """
[ -f {unit} ] || exit 6
$ctl restart {name} && exit 0
$ctl --no-pager --lines=5 status {name} | tail -n 5
exit 7
"""
)
NO_SYSTEMD, NO_UNIT, FAILED = 3, 6, 7
_WORD = re.compile(r"[A-Za-z0-9_./:=,+@-]+\Z")


class Shell(Protocol):
    """A board that runs scripts. name: what a person calls it. folder: of the model."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> str: ...
    def shell(self, script: str) -> tuple[int, str]:
        """The exit code of a POSIX shell's script there, and what it printed."""
        ...


class Service:
    """The service of a model on a board. Raises InputError where the board says nothing of itself."""

    def __init__(self, board: Shell) -> None:
        self._board = board
        code, said = board.shell(LOOK.format(folder=shlex.quote(board.folder)))
        lines = said.splitlines()
        if code or len(lines) != 3:
            raise InputError(f"the folder {board.folder} cannot be found on {board.name}.")
        self.folder, user, home = lines
        system = user == "0"
        self.place = "/etc/systemd/system" if system else f"{home}/.config/systemd/user"
        self.wanted_by = "multi-user.target" if system else "default.target"
        self.name = "runnel-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", self.folder.rsplit("/", 1)[-1]) + ".service"
        self._facts = {"place": shlex.quote(self.place), "unit": shlex.quote(f"{self.place}/{self.name}"),
                       "name": shlex.quote(self.name)}  # fmt: skip

    def unit(self, words: str) -> str:
        """The unit file. words: what ``runnel-run run`` gets besides the bundle. Raises InputError."""
        if any(not c.isprintable() for c in words):
            raise InputError("the arguments of a service are one line of text.")
        try:
            listed = shlex.split(words)
        except ValueError as error:
            raise InputError(f"the arguments of the service cannot be read ({error}).") from None
        current = f"{self.folder}/current"
        line = " ".join(map(_word, [f"{current}/runnel-run", "run", f"{current}/model.rnl", *listed]))
        template = (files("runnel.tools.deploy") / "unit.service").read_text("utf-8")
        facts = {"NAME": self.name.removesuffix(".service"), "COMMAND": line, "FOLDER": _word(self.folder)}
        for key, value in {**facts, "WANTED_BY": self.wanted_by}.items():
            template = template.replace(f"@{key}@", value)
        return template

    def install(self, words: str) -> str:
        """Writes and enables the unit; what the board says to it. Raises InputError."""
        code, said = self._board.shell(INSTALL.format(text=self.unit(words), **self._facts))
        if code == NO_SYSTEMD:
            raise InputError(f"{self._board.name} has no systemd; start {self.folder}/current/runnel-run in its way.")
        if code:
            raise InputError(f"the service cannot be installed on {self._board.name}: {_last(said)}.")
        return _last(said)

    def restart(self) -> bool:
        """Restarts the service and waits until it is ready; whether there is one. Raises InputError where it fails."""
        code, said = self._board.shell(RESTART.format(**self._facts))
        if code in (NO_SYSTEMD, NO_UNIT):
            return False
        if code:
            raise InputError(f"the service {self.name} does not start on {self._board.name}: {_last(said)}")
        return True


def _word(text: str) -> str:
    """A word of a unit's command line (systemd.syntax(7))."""
    escaped = text.replace("%", "%%").replace("$", "$$")
    return escaped if _WORD.match(text) else '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return "".join(c if c.isprintable() else "." for c in lines[-1][:300]) if lines else "it says nothing"
