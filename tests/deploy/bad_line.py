"""A serial line that is not there: a shell on one pseudo-terminal, a port on another, and what is lost between them."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import select
import subprocess
import termios
import threading
import time
import tty
from pathlib import Path


class BadLine:
    """A board with a login shell behind a tty. drop, flip: how likely each byte is lost or changed. delay: seconds that
    some bytes wait, their order kept. cut: nothing goes through. lost: bytes that were dropped or changed."""

    def __init__(
        self, home: Path, drop: float = 0, flip: float = 0, delay: float = 0, seed: int = 0,
        shell: list[str] | None = None, path: str | None = None,
    ) -> None:  # fmt: skip
        self.drop, self.flip, self.delay, self.random = drop, flip, delay, random.Random(seed)
        self.cut, self.lost = False, 0
        far, self._far_end = pty.openpty()
        near, near_end = pty.openpty()
        tty.setraw(near_end)
        self.device = os.ttyname(near_end)
        self._ends = (near_end,)
        environment = {"HOME": str(home), "PATH": path or os.environ["PATH"], "TERM": "dumb"}
        self.shell = subprocess.Popen(
            shell or ["sh", "-i"], stdin=self._far_end, stdout=self._far_end, stderr=self._far_end, cwd=home,
            env=environment, start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self._running = True
        self._threads = [
            threading.Thread(target=self._carry, args=(near, far), daemon=True),
            threading.Thread(target=self._carry, args=(far, near), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _carry(self, source: int, sink: int) -> None:
        while self._running:
            ready, _, _ = select.select([source], [], [], 0.05)
            if not ready:
                continue
            try:
                data = os.read(source, 512)
            except OSError:
                return
            if self.cut:
                continue
            data = self._spoiled(data)
            if self.delay and self.random.random() < 0.1:
                time.sleep(self.random.random() * self.delay)
            while data and self._running:
                _, ready, _ = select.select([], [sink], [], 0.05)
                if ready:
                    data = data[os.write(sink, data[:256]) :]

    def _spoiled(self, data: bytes) -> bytes:
        if not (self.drop or self.flip):
            return data
        out = bytearray()
        for octet in data:
            chance = self.random.random()
            self.lost += chance < self.drop + self.flip
            if chance < self.drop:
                continue
            out.append(octet ^ 1 << self.random.randrange(8) if chance < self.drop + self.flip else octet)
        return bytes(out)

    def close(self) -> None:
        self._running = False
        for thread in self._threads:
            thread.join()
        self.shell.kill()
        self.shell.wait()
        for end in (*self._ends, self._far_end):
            os.close(end)
