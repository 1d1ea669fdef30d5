"""A login shell at the far end of a serial line: commands and files reach it whole, or not at all.

Nothing is known of the line but that it loses and changes bytes. Every command carries its own checksum and is run
only where it arrived as it was sent; every file goes in parts, as octal escapes that a loop of `read` and `printf`
turns into bytes, and a part is sent again until its checksum is right. The shell needs printf, cat, rm, mv, mkdir,
chmod, wc, and one of cksum, md5sum and sha256sum.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable
from typing import Protocol

from runnel.errors import InputError

PART = 768  # bytes of a file that are sent at once: as text they fit what a tty keeps for a slow reader
LINE = 200  # characters of a line of them
LEAST_PART = 96
TRIES = 12
# Go on where the line was stopped, give up what runs; where an interrupt does nothing, end a quotation or a file.
FREE = (b"\x11\x03\n", b"\x11\x03\n.\n", b"\x11\x03\n'\n", b'\x11\x03\n"\n')
# A byte that was changed to one of these would end the shell, or stop the line.
QUIET = (
    "stty -echo -ixon eof undef susp undef quit undef lnext undef 2>/dev/null; PS1=; PS2=; set -o ignoreeof 2>/dev/null"
)
MOST_INTERRUPTS = 4  # after that many in vain, there may be none on that line
SCRIPT_SECONDS = 180.0
MOST_FAILURES = 60  # of parts in a row
PATIENCE, SECONDS = 1.0, 5.0  # that a command may take before it is sent again, at first and later
_LOGIN = re.compile(rb"(?:login|[Pp]assword|Username): ?\Z")
_POLYNOMIAL = 0x04C11DB7


def _table() -> list[int]:
    table = []
    for i in range(256):
        crc = i << 24
        for _ in range(8):
            crc = (crc << 1) ^ (_POLYNOMIAL if crc & 0x80000000 else 0)
        table.append(crc & 0xFFFFFFFF)
    return table


_TABLE = _table()


def cksum(data: bytes) -> str:
    """What POSIX's cksum prints for bytes on its standard input."""
    size, length = len(data), bytearray()
    while size:
        length.append(size & 255)
        size >>= 8
    crc = 0
    for octet in data + bytes(length):
        crc = (crc << 8 & 0xFFFFFFFF) ^ _TABLE[crc >> 24 ^ octet]
    return f"{crc ^ 0xFFFFFFFF} {len(data)}"


def escaped(data: bytes) -> str:
    """Bytes as printf's %b reads them, in letters, digits and backslashes alone."""
    out = []
    for i, octet in enumerate(data):
        if octet < 128 and chr(octet).isalnum():
            out.append(chr(octet))
            continue
        digits = i + 1 < len(data) and chr(data[i + 1]) in "01234567"
        out.append(f"\\0{octet:03o}" if digits else f"\\0{octet:o}")
    return "".join(out)


# Programs that give a checksum of their standard input, and what they print.
SUMS: dict[str, Callable[[bytes], str]] = {
    "cksum": cksum,
    "md5sum": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest() + "  -",
    "sha256sum": lambda data: hashlib.sha256(data).hexdigest() + "  -",
}


def _free(turn: int) -> bytes:
    return FREE[turn % len(FREE) if turn > MOST_INTERRUPTS else 0]


class Exchange(Protocol):
    """A port: see serial.Port."""

    name: str

    def exchange(self, data: bytearray, wait: float) -> bytes:
        """Sends what fits of data and gives what came."""


class Shell:
    """The shell behind a port. Raises InputError where there is none, or none that answers."""

    def __init__(self, port: Exchange, baud: int) -> None:
        self._port, self._baud = port, baud
        self._heard = b""
        self._failures = 0
        self._sum = "cksum"
        self._count = random.SystemRandom().randrange(1 << 20)

    def said(self) -> str:
        """What came last."""
        while part := self._port.exchange(bytearray(), 0.2):
            self._heard += part
        return self._heard[-4096:].decode("utf-8", "replace")

    def wake(self) -> None:
        """Looks for a shell and makes it a quiet POSIX one."""
        for turn in range(TRIES):
            self._send(_free(turn) if turn else b"\n")
            self._send(b"exec sh\n")
            self._wait(None, 0.3)
            if _LOGIN.search(self._heard.rstrip(b"\r\n")):
                raise InputError(
                    f"the board behind {self._port.name} asks for a login; log in there with a terminal program, "
                    "leave it, and push again."
                )
            for self._sum in SUMS:
                if self._try(QUIET, 0.3 + 0.2 * turn) is not None:
                    return
        raise InputError(
            f"there is no shell behind {self._port.name} at {self._baud} baud; check the cable and the rate, and "
            "log in there first."
        )

    def run(self, command: str, seconds: float = SECONDS) -> str:
        """What a command prints. It may be run more than once, and has no single quotes. Raises InputError.

        seconds: that it may take on a slow board.
        """
        for turn in range(TRIES):
            if (said := self._try(command, seconds if turn > 1 else min(seconds, PATIENCE))) is not None:
                return said
            self._send(_free(turn))
            self._wait(None, 0.2)
        raise InputError(f"the shell behind {self._port.name} does not answer; look whether a program has the line.")

    def sure(self, command: str, seconds: float = SECONDS) -> str:
        """What a command prints, the same twice in a row: an answer may be changed on its way."""
        before = None
        for _ in range(TRIES):
            if (said := self.run(command, seconds)) == before:
                return said
            before = said
        raise InputError(f"the line {self._port.name} is too bad for a line of text; check it.")

    def script(self, text: str) -> bytes:
        """What a script prints, whole."""
        room = f"/tmp/runnel-{self._count:x}-{random.SystemRandom().getrandbits(32):08x}"
        try:
            self.bring(text.encode(), room, "script", lambda stage, fraction=None: None)
            # Once, however often the command has to be sent, and where an interrupt of the line does not reach it.
            start = f"mkdir {room}/once && ( ( sh {room}/script > {room}/said; : > {room}/done ) & )"
            self.run(f"{{ {start}; }} 2>/dev/null </dev/null; :")
            until = time.monotonic() + SCRIPT_SECONDS
            while self.run(f"[ -f {room}/done ] && echo yes; :") != "yes":
                if time.monotonic() > until:
                    raise InputError(f"the board behind {self._port.name} takes too long for a script; look at it.")
                time.sleep(0.05)
            wanted = self.sure(f"{self._sum} < {room}/said").strip()
            for _ in range(TRIES):
                said = self.run(f"cat {room}/said", 30).encode()
                for whole in (said, said + b"\n"):
                    if self._of(whole) == wanted:
                        return whole
            raise InputError(f"the line {self._port.name} is too bad for a page of text; check it.")
        finally:
            self.run(f"rm -rf {room}")

    def bring(self, data: bytes, folder: str, name: str, progress: Callable[..., None]) -> None:
        """Brings a file into a folder there, whole and executable; parts that are there already are not sent again."""
        place, part = f'"{folder}/{name}"', f"{folder}/.{name}."
        if self.sure(f"{self._sum} < {place} 2>/dev/null; :").strip() == self._of(data):
            return
        self.run(f'mkdir -p "{folder}"')
        sums = f'echo "${{p##*.}} $(($(wc -c < "$p"))) $({self._sum} < "$p")"'
        listed = self.sure(f'for p in "{part}"*; do [ -f "$p" ] && {sums}; done; :', 60)
        there = self._usable(data, listed)
        spoiled = [place for place in re.findall(r"^(\d{10}) ", listed, re.M) if int(place) not in there]
        for at in range(0, len(spoiled), 16):
            self.run("rm -f " + " ".join(f'"{part}{place}"' for place in spoiled[at : at + 16]))
        begun, first, at, size = time.monotonic(), sum(there.values()), 0, PART
        while at < len(data):
            if at in there:
                at += there[at]
                continue
            stop = min([at + size, len(data), *(other for other in there if other > at)])
            if self._part(data[at:stop], f'"{part}{at:010d}"'):
                at, size = stop, min(2 * size, PART)
            elif size > LEAST_PART:
                size //= 2  # a shorter one has a better chance
            elif not self._try("true", SECONDS):
                self.wake()
            done = at - first or 1
            left = (time.monotonic() - begun) / done * (len(data) - at)
            progress(f"sending {name}, {left:.0f} s left", at / len(data))
        joined = f'cat "{part}"0* > "{part}whole"; {self._sum} < "{part}whole"'
        if self.sure(joined, 60).strip() != self._of(data):
            self.run(f'rm -f "{part}"*')
            raise InputError(f"{name} did not reach the board whole; look whether its disk is full, and push again.")
        self.run(f'[ -f {place} ] || {{ chmod 755 "{part}whole" && mv -f "{part}whole" {place}; }}; rm -f "{part}"*')

    def start(self, command: str, folder: str, turn: int = 0) -> None:
        """Starts a program that takes the line. turn: how often that was tried before and nothing answered."""
        if turn:
            self._send(_free(turn))
            self._wait(None, 0.2)
        self._send(self._guarded(f'(cd "{folder}" && exec {command})'))
        self._wait(None, 0.2)

    def _part(self, data: bytes, place: str) -> bool:
        """Sends some bytes once; whether they arrived whole. Raises InputError where nothing arrives for long."""
        body = "".join(f"#{line}\n" for line in _cut(escaped(data))) + ".\n"
        loop = (f'echo "run""nel-go"; while IFS= read -r a && [ "$a" != . ]; do printf %b "${{a#?}}"; done > {place}; '
                f"{self._sum} < {place}")  # fmt: skip
        mark = self._ask(loop)
        if self._wait(b"runnel-go", PATIENCE):
            self._send(body.encode())
            answer = self._answer(mark, PATIENCE + 20 * len(body) / self._baud)
            if answer is not None and answer.split("runnel-go")[-1].strip() == self._of(data):
                self._failures = 0
                return True
        self._failures += 1
        if self._failures > MOST_FAILURES:
            raise InputError(f"the line {self._port.name} is too bad, or the board's disk is full; check both.")
        self._send(b"\n.\n" + _free(self._failures))
        self._wait(None, 0.1)
        return False

    def _try(self, command: str, seconds: float) -> str | None:
        return self._answer(self._ask(command), seconds)

    def _ask(self, command: str) -> bytes:
        self._count += 1
        self._heard = b""
        self._send(self._guarded(f'{command}; echo "run""nel-{self._count}-end"'))
        return f"runnel-{self._count}-end".encode()

    def _answer(self, mark: bytes, seconds: float) -> str | None:
        if not self._wait(mark, seconds):
            return None
        said = self._heard.split(mark)[0].replace(b"\r", b"")
        return said.decode("utf-8", "replace").strip("\n")

    def _of(self, data: bytes) -> str:
        return SUMS[self._sum](data)

    def _usable(self, data: bytes, listed: str) -> dict[int, int]:
        """Parts on the board that belong to a file: their sizes by where they begin, none over another."""
        there: dict[int, int] = {}
        end = 0
        found = re.finditer(r"^(\d{10}) (\d+) (\S.*?)\s*$", listed, re.M)
        for place, size, text in sorted(match.groups() for match in found):
            at, stop = int(place), int(place) + int(size)
            if end <= at < stop and self._of(data[at:stop]) == text:
                there[at], end = int(size), stop
        return there

    def _guarded(self, command: str) -> bytes:
        assert "'" not in command
        check = f'[ "$(printf %s "$l" | {self._sum})" = "{self._of(command.encode())}" ]'
        return f"l='{command}'; {check} && eval \"$l\"\n".encode()

    def _send(self, data: bytes) -> None:
        left = bytearray(data)
        until = time.monotonic() + 30 + 20 * len(data) / self._baud
        while left:
            self._heard += self._port.exchange(left, 0.05)
            if time.monotonic() > until:
                raise InputError(f"the serial line {self._port.name} takes nothing; check the cable and flow control.")

    def _wait(self, mark: bytes | None, seconds: float) -> bool:
        """Whether a mark comes in time; without one, waits until the line is quiet."""
        until = time.monotonic() + seconds
        while mark is None or mark not in self._heard:
            left = until - time.monotonic()
            if left <= 0:
                return False
            part = self._port.exchange(bytearray(), min(left, 0.05 if mark else seconds))
            self._heard = (self._heard + part)[-1 << 18 :]
            if mark is None and not part:
                return False
        return True


def _cut(text: str) -> list[str]:
    """Lines of escapes, none of which is cut."""
    lines, line = [], ""
    for piece in re.findall(r"\\0[0-7]{0,3}|.", text):
        if len(line) + len(piece) > LINE:
            lines.append(line)
            line = ""
        line += piece
    return [*lines, line] if line else lines
