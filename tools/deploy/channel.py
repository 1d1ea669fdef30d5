"""Messages to and from the agent on a board: a size (32 bits, little-endian), a kind (1 byte), bytes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Protocol

from runnel.errors import InputError

MOST_MESSAGE = 32 << 20
FINE, REFUSED, LOG = b"o", b"e", b"l"


class Channel(Protocol):
    """What carries bytes to an agent and back, whole and in order."""

    def write(self, data: bytes) -> None:
        """Sends bytes. Raises InputError where the board is gone."""

    def read(self) -> bytes:
        """Some bytes, at least one. Raises InputError where the board is gone."""


class Pipe:
    """The standard streams of an agent that runs behind a process, such as ssh."""

    def __init__(self, process: subprocess.Popen[bytes], why: Callable[[], str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._in, self._out, self._why = process.stdin.fileno(), process.stdout.fileno(), why

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._in, view) :]
            except OSError:
                raise InputError(self._why()) from None

    def read(self) -> bytes:
        data = os.read(self._out, 1 << 16)
        if not data:
            raise InputError(self._why())
        return data


class Messages:
    """Whole messages over a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._have = bytearray()

    def send(self, kind: bytes, body: bytes = b"") -> None:
        """Sends one message."""
        self._channel.write(len(body).to_bytes(4, "little") + kind + body)

    def receive(self) -> tuple[bytes, bytes]:
        """The next message's kind and body. Raises InputError where what comes is none."""
        size = int.from_bytes(self._need(5)[:4], "little")
        if size > MOST_MESSAGE:
            raise InputError("what answers on the board is not runnel's agent; check the address.")
        message = self._need(5 + size)
        kind, body = bytes(message[4:5]), bytes(message[5 : 5 + size])
        del self._have[: 5 + size]
        if kind not in (FINE, REFUSED, LOG):
            raise InputError("what answers on the board is not runnel's agent; check the address.")
        return kind, body

    def _need(self, size: int) -> bytearray:
        while len(self._have) < size:
            self._have += self._channel.read()
        return self._have
