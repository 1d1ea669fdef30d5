"""``--on ssh://…`` of run, verify and bench: the bundle is brought to the board and runs there, and is not switched to.

Input goes there and outputs come back as numbers, frame by frame, through the connection; so do logs and figures.
"""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from runnel.errors import InputError
from runnel.runtime.bundle import Bundle
from runnel.runtime.io import Sink, open_sink
from runnel.runtime.program import Port
from runnel.tools import terminal
from runnel.tools.deploy.address import SshAddress, parse
from runnel.tools.deploy.push import Parcel, SshBoard, connected, push

ON_BOARD = "board:"  # before a URI that is read or written there
BLOCK = 1 << 16


def is_board(where: str) -> bool:
    """Whether ``--on`` names a board, and not an emulator."""
    return "://" in where


@contextmanager
def staged(path: str, where: str) -> Iterator[tuple[SshBoard, str]]:
    """A board that has the bundle, and its runnel-run there, as a path from the model's folder. Raises InputError."""
    address = parse(where)
    if not isinstance(address, SshAddress):
        raise InputError("--on takes qemu or ssh://user@board; over a serial line, push verifies on the board.")
    progress = terminal.Progress()
    with ExitStack() as stack:
        try:
            parcel = Parcel(path, Path(stack.enter_context(tempfile.TemporaryDirectory())))
            board = stack.enter_context(connected(address, parcel.name))
            assert isinstance(board, SshBoard)
            done = push(board, parcel, progress, use=False)
        finally:
            progress.close()
        yield board, f"versions/{done.id}"


def call(path: str, where: str, verb: str, words: Sequence[str]) -> int:
    """Runs a command of runnel-run on a board, its words going to the standard streams here; its exit code."""
    with staged(path, where) as (board, version):
        return _ended(board, board.ssh.start(_line(board, version, verb, words), stdin=subprocess.DEVNULL).wait())


def _line(board: SshBoard, version: str, verb: str, words: Sequence[str]) -> str:
    line = [f"./{version}/runnel-run", verb, f"{version}/model.rnl", *words]
    return f"cd {shlex.quote(board.folder)} && exec {shlex.join(line)}"


def _ended(board: SshBoard, code: int) -> int:
    if code == 255:
        raise board.ssh.lost()
    return code


def run(
    path: str, where: str, chunks: Iterable[Any] | None, source: str, sinks: Mapping[str, str],
    statics: Sequence[tuple[str, Any]], words: Sequence[str], out_rate: int | None,
) -> tuple[int, dict[str, Any], list[str]]:  # fmt: skip
    """Streams an input through a bundle on a board: the exit code, what it says of itself, notes on the outputs.

    chunks: arrays of the timed input, None where the board reads ``source`` itself. sinks: URIs by output; those that
    begin with board: are written there. words: further words for runnel-run. Raises InputError.
    """
    outputs = {port["name"]: Port.of(port) for port in Bundle(path).manifest["outputs"]}
    with staged(path, where) as (board, version), ExitStack() as stack:
        room = _room(board, stack)
        line = ["--in", "raw:-" if chunks is not None else source, *words]
        for i, (name, value) in enumerate(statics):
            line += ["--set", f"{name}={_value(board, f'{room}/{i}.npy', value)}"]
        kept: list[tuple[Port, Sink, str]] = []
        for i, (name, uri) in enumerate(sinks.items()):
            if uri.startswith(ON_BOARD):
                line += ["--out", f"{name}={uri.removeprefix(ON_BOARD)}"]
                continue
            sink = stack.enter_context(open_sink(uri, outputs[name], out_rate))
            place = f"{room}/out{i}" if kept else "-"  # the first comes back as it is made
            line += ["--out", f"{name}=raw:{place}"]
            kept.append((outputs[name], sink, place))
        live = kept[0] if kept else None
        process = board.ssh.start(
            _line(board, version, "run", [*line, "--json"]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        code, figures = _drive(process, chunks, outputs, live)
        _ended(board, code)
        for port, sink, place in kept[1:] if code == 0 else ():
            done = board.ssh.run(f"cd {shlex.quote(board.folder)} && cat {shlex.quote(place)}")
            _Frames(port, sink)(io.BytesIO(done.stdout))
        return code, figures, [note for _, sink, _ in kept for note in sink.notes]


def _room(board: SshBoard, stack: ExitStack) -> str:
    """A folder of this run alone there, removed at its end; a path from the model's folder."""
    folder = shlex.quote(board.folder)
    made = board.ssh.run(f"cd {folder} && d=run-$$ && mkdir $d && echo $d").stdout.decode().strip()
    if not made.startswith("run-"):
        raise InputError(f"{board.folder} on {board.name} cannot be written.")
    stack.callback(lambda: board.ssh.run(f"cd {folder} && rm -rf {made}"))
    return made


def _value(board: SshBoard, place: str, value: Any) -> str:
    if not np.ndim(value):
        return str(value)
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    board.ssh.run(f"cd {shlex.quote(board.folder)} && cat > {place}", file.getvalue())
    return place


class _Frames:
    """Takes numbers frame by frame, as runnel-run's raw form is, to a sink."""

    def __init__(self, port: Port, sink: Sink) -> None:
        self._port, self._sink = port, sink
        self._rest = [size for size in port.shape if size is not None]
        self._bytes = int(np.prod(self._rest, dtype=np.int64)) * port.dtype.itemsize

    def __call__(self, stream: Any) -> None:
        have = bytearray()
        read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
        while part := read(BLOCK):
            have += part
            count = len(have) // self._bytes
            if count:
                self._write(bytes(have[: count * self._bytes]), count)
                del have[: count * self._bytes]

    def _write(self, data: bytes, count: int) -> None:
        frames = np.frombuffer(data, self._port.dtype).reshape(count, *self._rest)
        if self._port.axis is None:
            self._sink.write(frames[-1])
        else:
            self._sink.write(np.ascontiguousarray(np.moveaxis(frames, 0, self._port.axis)))


def _drive(
    process: subprocess.Popen[bytes], chunks: Iterable[Any] | None, outputs: Mapping[str, Port],
    live: tuple[Port, Sink, str] | None,
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    assert process.stdin and process.stdout and process.stderr
    said: list[str] = []
    failed: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def body() -> None:
            try:
                work()
            except BrokenPipeError:
                pass  # it ended; its exit code says why
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        return thread

    feeding, hearing = process.stdin, process.stderr

    def feed() -> None:
        try:
            for chunk, axis in chunks or ():
                feeding.write(np.moveaxis(chunk, axis, 0).tobytes())
                feeding.flush()
        finally:
            feeding.close()

    threads = [guarded(feed), guarded(lambda: _hear(hearing, said))]
    try:
        if live:
            _Frames(live[0], live[1])(process.stdout)
        else:
            said += process.stdout.read().decode("utf-8", "replace").splitlines()
        code = process.wait()
        threads[1].join()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if failed:
        raise failed[0]
    figures = next((line for line in reversed(said) if line.startswith("{")), "{}")
    try:
        return code, dict(json.loads(figures))
    except ValueError:
        return code, {}


def _hear(stream: IO[bytes], said: list[str]) -> None:
    """Passes on what the board logs, as it comes; figures are kept."""
    for raw in stream:
        line = "".join(c for c in raw.decode("utf-8", "replace").rstrip("\n") if c.isprintable() or c == "\t")
        if line.startswith("{"):
            said.append(line)
        else:
            print(line, file=sys.stderr, flush=True)
