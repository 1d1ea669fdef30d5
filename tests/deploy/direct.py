"""A board that is this machine, its agent at the end of two pipes."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from runnel.tools import probe, terminal
from runnel.tools.deploy.agent import Agent
from runnel.tools.deploy.channel import Pipe
from runnel.tools.deploy.push import Parcel, Pushed, push


class DirectBoard:
    """before: words in front of the agent's command. environment: of the agent."""

    name = "this board"

    def __init__(
        self, folder: Path, agent: Path, before: list[str] | None = None, environment: dict[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._agent, self._before, self._environment = str(folder), agent, before or [], environment
        self.process: subprocess.Popen[bytes] | None = None

    @staticmethod
    @cache
    def probe() -> dict[str, str]:
        return probe.parse(subprocess.run(["sh", "-s"], input=probe.script(quick=True).encode(), capture_output=True,
                                          check=True).stdout, "this board")  # fmt: skip

    @contextmanager
    def agent(self, arch: str, progress: object) -> Iterator[Agent]:
        with tempfile.TemporaryFile() as errors:
            self.process = subprocess.Popen(
                [*self._before, str(self._agent), self.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, env=self._environment,
            )  # fmt: skip

            def why() -> str:
                errors.seek(0)
                return f"the agent ended: {errors.read().decode()}"

            try:
                yield Agent(Pipe(self.process, why))
            finally:
                with contextlib.suppress(BrokenPipeError):
                    self.process.stdin.close()
                self.process.stdout.close()
                self.process.wait(20)


def parcel(bundle: Path, room: Path, runner: Path) -> Parcel:
    room.mkdir(exist_ok=True)
    return Parcel(str(bundle), room, str(runner))


def pushed(board: DirectBoard, what: Parcel, keys: bytes = b"") -> Pushed:
    return push(board, what, terminal.Progress(), keys=keys)


def current(folder: Path) -> str | None:
    """The version that a folder has, None for none."""
    return (folder / "current").readlink().name if (folder / "current").is_symlink() else None


def verified(folder: Path) -> bool:
    """Whether what is current in a folder runs and holds."""
    words = [folder / "current" / "runnel-run", "verify", folder / "current" / "model.rnl"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0
