"""A stream of bytes, whole and in order, over a serial line that drops, changes and delays them.

The laptop's side of runtime/agent/line.h, which says what a frame is: COBS between zero bytes, a CRC-32C, a number, and
acknowledgements of what arrived beyond a gap, so that only what was lost is sent again (selective repeat).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from runnel.runtime.native import crc32c_of

HEAD = struct.Struct("<B4I")  # kind, session, number, expected, beyond
PAYLOAD, WINDOW = 512, 32
MOST_FRAME = HEAD.size + PAYLOAD + 4
MOST_CODED = MOST_FRAME + MOST_FRAME // 254 + 1
OPEN, OPENED, DATA, ACKNOWLEDGE, ASK, END = range(1, 7)
MOST_WAITING = 4096
LEAST_RETRY, MOST_RETRY = 0.1, 4.0
_MASK = (1 << 32) - 1


def encode(frame: bytes) -> bytes:
    """COBS: no byte of it is zero."""
    out = bytearray()
    for i, run in enumerate(pieces := frame.split(b"\0")):
        while len(run) >= 254:
            out += b"\xff" + run[:254]
            run = run[254:]
            if not run and i == len(pieces) - 1:
                return bytes(out)
        out += bytes([len(run) + 1]) + run
    return bytes(out)


def decode(coded: bytes) -> bytes | None:
    """What ``encode`` was given; None for what it does not give."""
    out, at = bytearray(), 0
    while at < len(coded):
        run = coded[at]
        if run == 0 or at + run > len(coded):
            return None
        out += coded[at + 1 : at + run]
        at += run
        if run < 255 and at < len(coded):
            out.append(0)
    return bytes(out)


def window_of(baud: int) -> int:
    """Frames that may be under way on a line of that rate: those of 0.7 s."""
    return min(max(baud // 10 * 7 // 10 // PAYLOAD, 2), WINDOW)


@dataclass
class _Sent:
    data: bytes
    at: float
    order: int = 0
    times: int = 0
    arrived: bool = False
    lost: bool = False


class Line:
    """One side of a line, without the line: times in seconds come from outside. session: any number of 32 bits."""

    def __init__(self, session: int, window: int = WINDOW) -> None:
        self.session, self._window = session, window
        self.received, self.out = bytearray(), bytearray()
        self.opened = self.ended = False
        self.heard = 0.0
        self._sending = bytearray()
        self._coded = bytearray()
        self._sent: dict[int, _Sent] = {}
        self._early: dict[int, bytes] = {}
        self._first = self._next = self._expected = self._order = 0
        self._retry, self._smooth, self._spread, self._retried = 1.0, 0.0, 0.0, 0.0
        self._owes = False

    @property
    def idle(self) -> bool:
        """Whether all that was written has arrived."""
        return not self._sent and not self._sending

    def write(self, data: bytes) -> None:
        """Takes bytes for the other side."""
        self._sending += data

    def open(self) -> None:
        """Asks the other side to begin the session."""
        self._frame(OPEN)

    def ask(self) -> None:
        """Asks the other side for a sign of life."""
        self._frame(ASK)

    def end(self) -> None:
        """Tells the other side that this one is gone."""
        self._frame(END)

    def receive(self, data: bytes, now: float) -> None:
        """Takes what came from the line."""
        *whole, rest = data.split(b"\0")
        for part in whole:
            self._coded += part
            if 0 < len(self._coded) <= MOST_CODED:
                self._take(bytes(self._coded), now)
            self._coded.clear()
        self._coded += rest
        del self._coded[MOST_CODED + 1 :]

    def _take(self, coded: bytes, now: float) -> None:
        frame = decode(coded)
        if frame is None or not HEAD.size + 4 <= len(frame) <= MOST_FRAME:
            return
        if crc32c_of(frame[:-4]) != int.from_bytes(frame[-4:], "little"):
            return
        kind, session, number, expected, beyond = HEAD.unpack_from(frame)
        if session != self.session:
            return
        self.heard = now
        if kind == OPENED:
            self.opened = True
            return
        self._acknowledged(expected, beyond, now)
        if kind == DATA and (number - self._expected) & _MASK < WINDOW:
            self._early[number] = frame[HEAD.size : -4]
            while (due := self._early.pop(self._expected, None)) is not None:
                self.received += due
                self._expected = (self._expected + 1) & _MASK
        self._owes |= kind in (DATA, ASK)
        self.ended |= kind == END

    def _acknowledged(self, expected: int, beyond: int, now: float) -> None:
        under_way = (self._next - self._first) & _MASK
        if (expected - self._first) & _MASK > under_way:
            return
        latest = 0
        for number, slot in self._sent.items():
            before = (number - self._first) & _MASK < (expected - self._first) & _MASK
            place = (number - expected - 1) & _MASK
            if slot.arrived or not (before or (place < WINDOW and beyond >> place & 1)):
                continue
            slot.arrived = True
            latest = max(latest, slot.order)
            if slot.times == 1:
                self._timed(now - slot.at)
        while self._first != expected:
            del self._sent[self._first]
            self._first = (self._first + 1) & _MASK
        for slot in self._sent.values():
            slot.lost |= not slot.arrived and slot.order < latest

    def _timed(self, took: float) -> None:
        self._spread += (abs(took - self._smooth) - self._spread) / 4
        self._smooth += (took - self._smooth) / 8 if self._smooth else took
        self._retry = min(max(self._smooth + 4 * self._spread, LEAST_RETRY), MOST_RETRY)

    def poll(self, now: float) -> None:
        """Puts the frames that are due into ``out``."""
        for number, slot in self._sent.items():
            if slot.lost and len(self.out) < MOST_WAITING:
                self._send(number, slot, now)
        if self._sent:
            slot = self._sent[self._first]
            if now - slot.at >= self._retry and now - self._retried >= self._retry:
                self._retried = now
                if self._retry < MOST_RETRY:
                    self._retry *= 1.5
                self._send(self._first, slot, now)
        while self._sending and len(self._sent) < self._window and len(self.out) < MOST_WAITING:
            slot = self._sent[self._next] = _Sent(bytes(self._sending[:PAYLOAD]), now)
            del self._sending[:PAYLOAD]
            self._send(self._next, slot, now)
            self._next = (self._next + 1) & _MASK
        if self._owes:
            self._frame(ACKNOWLEDGE)

    def _send(self, number: int, slot: _Sent, now: float) -> None:
        self._order += 1
        slot.at, slot.order, slot.lost = now, self._order, False
        slot.times += 1
        self._frame(DATA, number, slot.data)

    def _frame(self, kind: int, number: int = 0, data: bytes = b"") -> None:
        beyond = sum(1 << i for i in range(WINDOW - 1) if (self._expected + 1 + i) & _MASK in self._early)
        frame = HEAD.pack(kind, self.session, number, self._expected, beyond) + data
        self.out += b"\0" + encode(frame + crc32c_of(frame).to_bytes(4, "little")) + b"\0"
        self._owes = False
