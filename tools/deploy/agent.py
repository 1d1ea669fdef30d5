"""What a laptop asks of the agent on a board."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from runnel.errors import InputError
from runnel.tools.deploy.channel import LOG, REFUSED, Channel, Messages

PROTOCOL = "1"
AHEAD = 8  # parts that are sent before the first of them is answered
Log = Callable[[str], None]


class BoardError(InputError):
    """The board refused; the message is its sentence."""


class Agent:
    """An agent behind a channel. log: takes the lines that programs on the board print."""

    def __init__(self, channel: Channel, log: Log | None = None) -> None:
        self._messages = Messages(channel)
        self._log = log or (lambda text: None)

    def describe(self, features: Sequence[str] = ()) -> dict[str, str]:
        """What the board is, by key; `lacking`: those of LLVM's features that it has not. Raises InputError."""
        text = self._ask(b"H", " ".join(features).encode()).decode("utf-8", "replace")
        facts = {key: value.strip() for key, _, value in (line.partition(" ") for line in text.splitlines())}
        if facts.get("protocol") != PROTOCOL:
            raise InputError("the agent on the board speaks another protocol; remove it there and push again.")
        return facts

    def begin(self, spec: bytes) -> list[int]:
        """Begins a version; the numbers of the parts that the board lacks. Raises BoardError."""
        body = self._ask(b"B", spec)
        if len(body) % 4:
            raise InputError("what answers on the board is not runnel's agent; check the address.")
        return [int(i) for i in np.frombuffer(body, "<u4")]

    def put(self, parts: Iterator[tuple[int, bytes]], sent: Callable[[int], None]) -> None:
        """Sends parts. sent: called with the bytes that have arrived since. Raises BoardError."""
        under_way: list[int] = []
        for index, data in parts:
            self._messages.send(b"P", index.to_bytes(4, "little") + data)
            under_way.append(len(data))
            if len(under_way) >= AHEAD:
                self._answer()
                sent(under_way.pop(0))
        for size in under_way:
            self._answer()
            sent(size)

    def commit(self, use: bool) -> str:
        """Checks and plays the version on the board and, with `use`, switches to it; its id. Raises BoardError."""
        return self._ask(b"C", b"\x01" if use else b"\x00").decode("ascii", "replace")

    def rollback(self) -> str:
        """Goes back to the version before; its id. Raises BoardError."""
        return self._ask(b"R").decode("ascii", "replace")

    def trust(self, keys: bytes) -> None:
        """Tells the board the keys whose bundles it runs from now on. Raises BoardError."""
        self._ask(b"T", keys)

    def quit(self) -> None:
        """Ends the agent."""
        self._ask(b"Q")

    def _ask(self, kind: bytes, body: bytes = b"") -> bytes:
        self._messages.send(kind, body)
        return self._answer()

    def _answer(self) -> bytes:
        while True:
            kind, body = self._messages.receive()
            if kind == LOG:
                self._log(body.decode("utf-8", "replace"))
            elif kind == REFUSED:
                raise BoardError("".join(c if c.isprintable() else " " for c in body.decode("utf-8", "replace")))
            else:
                return body
