"""A board behind a UART: the agent is brought over a login shell, and then speaks frames."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from runnel.errors import InputError
from runnel.tools import probe
from runnel.tools.deploy import programs, shell
from runnel.tools.deploy.address import SerialAddress
from runnel.tools.deploy.agent import Agent
from runnel.tools.deploy.line import Line, window_of

TURN = 0.02  # seconds between two looks at what is to be sent again
ASK_EVERY, SILENCE = 2.0, 60.0
OPEN_EVERY, OPEN_SECONDS = 0.25, 1.5
START_TRIES = 6


class Port:
    """A tty here, through pyserial. Raises InputError."""

    def __init__(self, address: SerialAddress) -> None:
        try:
            import serial
        except ImportError:
            raise InputError("a serial line needs pyserial; pip install 'runnel[deploy]'.") from None
        self.name = address.device
        try:
            self._tty: Any = serial.Serial(address.device, address.baud, timeout=0, write_timeout=0, exclusive=True)
        except (serial.SerialException, ValueError, OSError) as error:
            raise InputError(f"the serial line {address.device} cannot be opened: {error}.") from None
        self._failures: tuple[type[BaseException], ...] = (serial.SerialException, OSError)

    def exchange(self, data: bytearray, wait: float) -> bytes:
        """Sends what the line takes of ``data``, removes it there, and waits for something to come."""
        try:
            fd = self._tty.fileno()
            can_read, can_write, _ = select.select([fd], [fd] if data else [], [], wait)
            if can_write:
                try:
                    del data[: self._tty.write(bytes(data[:1024])) or 0]
                except Exception as error:  # pyserial's own kind where nothing fits just now
                    if type(error).__name__ != "SerialTimeoutException":
                        raise
            return bytes(self._tty.read(4096)) if can_read else b""
        except self._failures as error:
            raise InputError(f"the serial line {self.name} is gone: {error}.") from None

    def close(self) -> None:
        """Gives the line back."""
        with contextlib.suppress(Exception):
            self._tty.close()


class LineChannel:
    """A channel to an agent over frames on a port. Raises InputError where the agent falls silent."""

    def __init__(self, port: Port, baud: int) -> None:
        self._port = port
        self._line = Line(random.SystemRandom().getrandbits(32), window_of(baud))

    def open(self, seconds: float = OPEN_SECONDS) -> bool:
        """Whether an agent answers."""
        until, next_open = time.monotonic() + seconds, 0.0
        while not self._line.opened:
            now = time.monotonic()
            if now >= until:
                return False
            if now >= next_open:
                self._line.open()
                next_open = now + OPEN_EVERY
            self._turn()
        return True

    def write(self, data: bytes) -> None:
        """Takes bytes; they are sent while the answer is waited for."""
        self._line.write(data)
        self._turn(0)

    def read(self) -> bytes:
        """Some bytes, at least one."""
        self._line.heard = max(self._line.heard, time.monotonic() - SILENCE / 2)
        asked = time.monotonic()
        while not self._line.received:
            now = time.monotonic()
            if self._line.ended or now - self._line.heard > SILENCE:
                raise InputError(f"the agent behind {self._port.name} does not answer any more; push again to resume.")
            if now - max(asked, self._line.heard) > ASK_EVERY:
                self._line.ask()
                asked = now
            self._turn()
        data = bytes(self._line.received)
        self._line.received.clear()
        return data

    def close(self) -> None:
        """Tells the agent that nobody listens any more, so that it gives the line back to the shell."""
        for _ in range(3):
            self._line.end()
            self._turn()

    def _turn(self, wait: float = TURN) -> None:
        self._line.poll(time.monotonic())
        data = self._port.exchange(self._line.out, wait)
        self._line.receive(data, time.monotonic())
        self._line.poll(time.monotonic())


class SerialBoard:
    """A board behind a serial line. folder: of the model, in the home of who is logged in there, or absolute."""

    def __init__(self, port: Port, address: SerialAddress, folder: str) -> None:
        self._port, self._baud, self.folder, self.name = port, address.baud, folder, address.device
        self._found: dict[str, str] | None = None
        self._shell = shell.Shell(port, address.baud)

    def probe(self) -> dict[str, str]:
        """What the board says of itself. Raises InputError."""
        if self._found is None:
            self._leave_agent()
            self._shell.wake()
            said = self._shell.script(probe.script(quick=True))
            self._found = probe.parse(said, self.name)
        return self._found

    def shell(self, script: str) -> tuple[int, str]:
        """Runs a script there: its exit code and what it printed."""
        self._shell.wake()
        said = self._shell.script(f"(\n{script}\n) 2>&1\necho $?\n").decode("utf-8", "replace").rstrip("\n")
        text, _, code = said.rpartition("\n")
        return int(code) if code.isdigit() else 1, text

    def _leave_agent(self) -> None:
        """An agent that an earlier push left running has the line: it is told to give it back."""
        channel = LineChannel(self._port, self._baud)
        if channel.open():
            agent = Agent(channel)
            with contextlib.suppress(InputError):
                agent.quit()
            channel.close()

    @contextmanager
    def agent(self, arch: str, progress: Callable[..., None]) -> Iterator[Agent]:
        """The agent in the model's folder, brought there over the shell where it is not yet. Raises InputError."""
        data = programs.agent(arch).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        name = f"agent-{digest[:16]}"
        self._shell.wake()
        self._shell.bring(data, self.folder, name, progress)
        channel = self._started(f"./{name} . --line")
        try:
            agent = Agent(channel)
            if agent.describe()["self"] != digest:
                raise InputError(f"the agent behind {self.name} was altered; remove {self.folder}/{name} there.")
            yield agent
            agent.quit()
        finally:
            with contextlib.suppress(InputError):
                channel.close()

    def _started(self, command: str) -> LineChannel:
        """A channel to an agent that is started, as often as the line spoils the command. Raises InputError."""
        for turn in range(START_TRIES):
            self._shell.start(command, self.folder, turn)
            channel = LineChannel(self._port, self._baud)
            if channel.open((turn + 1) * OPEN_SECONDS):
                return channel
        said = re.sub(r"\s+", " ", self._shell.said())[-200:]
        raise InputError(f"the agent does not start behind {self.name}: {_printable(said) or 'it says nothing'}.")


def _printable(text: str) -> str:
    """Text of a board without what a terminal would take as a command."""
    return "".join(c if c.isprintable() else "." for c in text)
