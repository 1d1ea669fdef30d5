"""One connection of the user's own ssh, shared by all commands of a push; what it asks is asked once, by itself."""

from __future__ import annotations

import contextlib
import selectors
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from runnel.errors import InputError
from runnel.tools.deploy.address import SshAddress

SECONDS = 120  # that a person has to answer what ssh asks
READY = b"runnel-connected"


class Ssh:
    """The user's settings, agent and known hosts hold; no option of theirs is turned off and nothing is stored."""

    def __init__(self, address: SshAddress) -> None:
        self.name = address.host
        where = ["-p", str(address.port)] if address.port else []
        where += ["-l", address.user] if address.user else []
        self._room = tempfile.mkdtemp(prefix="runnel-", dir="/tmp" if Path("/tmp").is_dir() else None)
        self._socket = f"{self._room}/s"
        self._where = [*where, "--", address.host]
        self._errors: IO[bytes] = open(f"{self._room}/errors", "w+b")  # noqa: SIM115
        self._master: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Ssh:
        line = self._line("-M", f"echo {READY.decode()}; cat >/dev/null")  # ends when this process does
        try:
            self._master = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
            self._wait()
        except BaseException as error:
            self.close()
            if isinstance(error, FileNotFoundError):
                raise InputError("there is no 'ssh' on this machine; install openssh-client.") from None
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _line(self, *rest: str) -> list[str]:
        return ["ssh", "-T", "-S", self._socket, *rest[:-1], *self._where, rest[-1]]

    def _wait(self) -> None:
        assert self._master is not None and self._master.stdout is not None
        said, until = b"", time.monotonic() + SECONDS
        with selectors.DefaultSelector() as ready:
            ready.register(self._master.stdout, selectors.EVENT_READ)
            while READY not in said:
                if not ready.select(max(0, until - time.monotonic())):
                    raise InputError(
                        f"{self.name} did not answer within {SECONDS} s; try: {shlex.join(['ssh', *self._where])}"
                    )
                part = self._master.stdout.read1(4096)  # type: ignore[attr-defined]
                said = (said + part)[-1 << 16 :]
                if not part:
                    raise self.lost()

    def lost(self) -> InputError:
        """What ssh said when it gave up."""
        if self._master is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._master.wait(2)
        self._errors.seek(0)
        said = self._errors.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
        why = "".join(c if c.isprintable() else "." for c in said[-1][:200]) if said else "the connection was lost"
        return InputError(
            f"ssh does not reach {self.name}: {why.rstrip('.')}; try: {shlex.join(['ssh', *self._where])}"
        )

    def start(self, script: str, **streams: Any) -> subprocess.Popen[bytes]:
        """Starts a POSIX shell's script there, whatever shell the user has."""
        return subprocess.Popen(self._line("-oControlMaster=no", "exec sh -c " + shlex.quote(script)), **streams)

    def run(self, script: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Runs a script to its end. Raises InputError where the connection is lost."""
        process = self.start(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(data)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode == 255:
            self._errors.write(err)
            raise self.lost()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def close(self) -> None:
        """Ends the connection."""
        if self._master is not None:
            for stream in (self._master.stdin, self._master.stdout):
                if stream is not None:
                    stream.close()
            try:
                self._master.wait(5)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.wait()
        self._errors.close()
        shutil.rmtree(self._room, ignore_errors=True)
