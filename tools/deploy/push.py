"""``runnel push``: a mismatch is refused before anything is sent; what changed is sent, tried there and switched to."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from runnel.errors import InputError
from runnel.runtime.bundle import Bundle
from runnel.tools import elf_check, probe, terminal
from runnel.tools.deploy import programs
from runnel.tools.deploy.address import Address, SshAddress, folder_of
from runnel.tools.deploy.agent import Agent
from runnel.tools.deploy.channel import Pipe
from runnel.tools.deploy.check import Needs, board_arch, memory_of, refuse_mismatch
from runnel.tools.deploy.serial import Port, SerialBoard
from runnel.tools.deploy.service import Service
from runnel.tools.deploy.ssh import Ssh
from runnel.tools.deploy.version import Version, write_board_form


@dataclass(frozen=True)
class Pushed:
    """What a push did. sent: bytes of the version's that went over the line. known: those that were there
    already. service: that runs it, empty where there is none."""

    id: str
    folder: str
    previous: str
    sent: int
    known: int
    seconds: float
    service: str = ""


class Parcel:
    """A bundle made ready for boards: its board form, the program that runs it, and what both need."""

    def __init__(self, path: str, room: Path, runner: str | None = None) -> None:
        bundle = Bundle(path)
        bundle.verify()
        self.name = str(bundle.manifest["name"])
        target = bundle.manifest["target"]
        model = room / "model.rnl"
        write_board_form(bundle, model)
        program = Path(runner) if runner else programs.runner(target["arch"])
        try:
            elf = elf_check.read(program.read_bytes())
        except OSError as error:
            raise InputError(f"'{program}' cannot be read: {error.strerror}; name a runnel-run.") from None
        self.version = Version.of(model, program)
        memory, weights = memory_of(bundle)
        self.needs = Needs(path, target["arch"], target["name"], tuple(target["features"]), memory, weights,
                           self.version.size, elf)  # fmt: skip


class SshBoard:
    """A board behind ssh, in one connection. folder: of the model, in the home there or absolute."""

    def __init__(self, ssh: Ssh, folder: str) -> None:
        self.ssh, self.folder, self.name = ssh, folder, ssh.name

    def probe(self) -> dict[str, str]:
        """What the board says of itself. Raises InputError."""
        return probe.parse(self.ssh.run(probe.script(quick=True)).stdout, self.name)

    def shell(self, script: str) -> tuple[int, str]:
        """Runs a script there: its exit code and what it printed."""
        done = self.ssh.run(script + "\n")
        return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")

    @contextmanager
    def agent(self, arch: str, progress: Callable[..., None]) -> Iterator[Agent]:
        """The agent in the model's folder, sent there where it is not yet. Raises InputError."""
        local = programs.agent(arch)
        data = local.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        name = f"agent-{digest[:16]}"
        self._send_agent(name, data)
        start = f"cd {shlex.quote(self.folder)} && exec ./{name} ."
        with tempfile.TemporaryFile() as errors:
            process = self.ssh.start(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)

            def why() -> str:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(2)
                errors.seek(0)
                said = errors.read(4096).decode("utf-8", "replace").strip().splitlines()
                last = "".join(c if c.isprintable() else "." for c in said[-1][:300]) if said else ""
                if process.poll() in (None, 255) or not last:
                    return (
                        f"the connection to {self.name} was lost ({last or 'it says nothing'}); push again to resume."
                    )
                return f"the agent does not run on {self.name}: {last}."

            try:
                agent = Agent(Pipe(process, why))
                if agent.describe()["self"] != digest:
                    raise InputError(f"the agent on {self.name} was altered; remove {self.folder}/{name} there.")
                yield agent
                agent.quit()
            finally:
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        stream.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()
                process.wait()

    def _send_agent(self, name: str, data: bytes) -> None:
        folder = shlex.quote(self.folder)
        there = self.ssh.run(f"umask 022; mkdir -p {folder} && cd {folder} && [ -x {name} ] && wc -c < {name}")
        if there.returncode == 0 and there.stdout.split() == [str(len(data)).encode()]:
            return
        part = f".{name}.$$"
        script = (
            f"umask 022; mkdir -p {folder} && cd {folder} && cat > {part} && [ $(wc -c < {part}) -eq {len(data)} ] && "
            f"chmod 755 {part} && mv -f {part} {name} && "
            f"{{ for old in agent-*; do [ $old = {name} ] || rm -f $old; done; }} || {{ rm -f {part}; exit 1; }}"
        )
        done = self.ssh.run(script, data)
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            why = "".join(c if c.isprintable() else "." for c in said[-1][:300]) if said else "it says nothing"
            raise InputError(f"the agent cannot be written to {self.folder} on {self.name}: {why}.")


Board = SshBoard | SerialBoard


@contextmanager
def connected(address: Address, model: str | None) -> Iterator[Board]:
    """A board behind an address. model: the name that its folder follows from. Raises InputError."""
    if not isinstance(address, SshAddress):
        if not address.folder and not model:
            raise InputError(f"name the folder of the model: serial://{address.device}?dir=runnel/NAME.")
        with closing(Port(address)) as port:
            yield SerialBoard(port, address, address.folder or folder_of(model or ""))
        return
    with Ssh(address) as ssh:
        folder = address.folder or (folder_of(model) if model else _only_folder(ssh))
        yield SshBoard(ssh, folder)


def _only_folder(ssh: Ssh) -> str:
    """The folder of the one model that a board has. Raises InputError where there are none or several."""
    script = 'cd runnel 2>/dev/null && for m in *; do [ -L "$m/current" ] && printf \'%s\\n\' "$m"; done; exit 0'
    found = ssh.run(script).stdout.decode("utf-8", "replace").split("\n")[:-1]
    if len(found) != 1:
        known = f"several models ({', '.join(found[:20])})" if found else "no model in ~/runnel"
        raise InputError(f"{ssh.name} has {known}; name the folder: ssh://user@{ssh.name}:runnel/NAME.")
    return folder_of(found[0])


def push(board: Board, parcel: Parcel, progress: terminal.Progress, use: bool = True, keys: bytes = b"") -> Pushed:
    """Brings a version to a board and, with `use`, makes it the current one. Raises InputError, BoardError.

    keys: told to the board before, so that it runs nothing that they did not sign.
    """
    begun = time.monotonic()
    progress("looking at the board")
    found = board.probe()
    refuse_mismatch(parcel.needs, found, board.name)
    with board.agent(board_arch(found), progress) as agent:
        facts = agent.describe(parcel.needs.features)
        refuse_mismatch(parcel.needs, {**found, "available_kib": facts.get("available_kib", "")}, board.name)
        if lacking := facts.get("lacking", "").split():
            raise InputError(
                f"'{parcel.needs.path}' needs a processor with {', '.join(lacking)}, which that of {board.name} lacks; "
                "compile it for this board."
            )
        if keys:
            agent.trust(keys)
        version = parcel.version
        missing = agent.begin(version.spec)
        total = version.bytes_of(missing)
        sending = Sending(progress, total)
        agent.put(version.read(missing), sending)
        progress("checking and trying it on the board")
        name = agent.commit(use)
        if name != version.id:
            raise InputError(f"{board.name} took another version than was sent; push again.")
        previous = agent.describe()["previous"]
    return Pushed(name, board.folder, previous, total, version.size - total, time.monotonic() - begun)


class Sending:
    """Progress of bytes, with the time that is left."""

    def __init__(self, progress: terminal.Progress, total: int) -> None:
        self._progress, self._total, self._sent, self._begun = progress, total, 0, time.monotonic()

    def __call__(self, size: int) -> None:
        self._sent += size
        took = time.monotonic() - self._begun
        left = took / self._sent * (self._total - self._sent)
        self._progress(f"sending {terminal.size(self._total)}, {_clock(left)} left", self._sent / self._total)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def push_bundle(
    path: str, address: Address, progress: terminal.Progress, *, runner: str | None = None, keys: bytes = b"",
    service: str | None = None,
) -> Pushed:  # fmt: skip
    """Brings a bundle to the board behind an address and makes it the current one there. Raises InputError.

    runner: the program to send, in place of one that is built. service: what ``runnel-run run`` gets besides the bundle
    in a service of the board; one that is there already is restarted in any case.
    """
    with ExitStack() as stack:
        room = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress("reading the bundle")
        parcel = Parcel(path, room, runner)
        board = stack.enter_context(connected(address, parcel.name))
        done = push(board, parcel, progress, keys=keys)
        progress("starting the service" if service is not None else "looking for a service")
        return replace(done, service=_served(board, parcel.needs.arch, done, service, progress))


def _served(board: Board, arch: str, done: Pushed, words: str | None, progress: terminal.Progress) -> str:
    """Restarts the service of a board, or makes one; its name, empty where there is none.

    Raises InputError where it does not start: then the board is back at the version before.
    """
    unit = Service(board)
    if words is not None and (said := unit.install(words)) and "linger" in said:
        progress.note(said)
    try:
        return unit.name if unit.restart() else ""
    except InputError as error:
        if not done.previous or done.previous == done.id:
            raise
        with board.agent(arch, progress) as agent:
            agent.rollback()
        unit.restart()
        raise InputError(f"{error}; the board is back at the version before, {done.previous}.") from None


def rollback(board: Board, progress: terminal.Progress) -> str:
    """Goes back to the version before and restarts the service, where there is one; the version. Raises InputError."""
    progress("going back")
    with board.agent(board_arch(board.probe()), progress) as agent:
        name = agent.rollback()
    Service(board).restart()
    return name
