"""Programs in a row as one program: what each gives is pushed into the next, its axes adapted where that is safe."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np

from runnel.errors import InputError, StreamError
from runnel.runtime.program import FOREIGN_STATE, Array, Port, Program, Result, Stream, check_policy

MAGIC = b"RNLCHAIN"
BROKEN = "an earlier push failed inside the chain, so its streams are out of step; call reset() to start again."


@dataclass(frozen=True)
class Link:
    """An output and the input that it feeds: time is moved to where the input has it, axes of size one come and go."""

    source: Port
    target: Port

    @staticmethod
    def between(source: Program, target: Program) -> Link:
        """The one output of ``source`` that fits the one input of ``target``. Raises InputError."""
        names = source.manifest.get("name", "?"), target.manifest.get("name", "?")
        if len(target.timed) != 1:
            listed = ", ".join(f"'{p.name}'" for p in target.timed)
            raise InputError(f"'{names[1]}' takes several inputs ({listed}), so it cannot follow '{names[0]}'.")
        offered = results(source)
        fitting = [port for port in offered if fits(port, target.timed[0])]
        if len(fitting) == 1:
            return Link(fitting[0], target.timed[0])
        listed = ", ".join(f"'{p.name}' {p}" for p in offered)
        how = f"{len(fitting)} of them fit" if fitting else "that cannot be made to fit"
        raise InputError(
            f"'{names[0]}' gives {listed} and '{names[1]}' takes '{target.timed[0].name}' {target.timed[0]}: {how} "
            "by moving the time axis and axes of size one; compile the models with ports that match."
        )

    def adapt(self, values: Array) -> Array:
        """The output's frames as frames of the input."""
        assert self.source.axis is not None and self.target.axis is not None
        frames = np.moveaxis(values, self.source.axis, 0)
        shaped = frames.reshape(len(frames), *_frame(self.target))
        return np.ascontiguousarray(np.moveaxis(shaped, 0, self.target.axis))


def results(program: Program) -> list[Port]:
    """The outputs of a program that are no states of the model's own."""
    states = {state["out"] for state in (program.manifest.get("onnx") or {}).get("states", ())}
    return [port for port in program.outputs if port.name not in states] or list(program.outputs)


def fits(source: Port, target: Port) -> bool:
    """Whether frames of one port are frames of the other but for axes of size one and the place of time."""
    if source.axis is None or target.axis is None or source.dtype != target.dtype:
        return False
    return [n for n in _frame(source) if n != 1] == [n for n in _frame(target) if n != 1]


def _frame(port: Port) -> list[int]:
    return [n for n in port.shape if n is not None]


def ratio(program: Program, output: Port) -> Fraction:
    """Output frames for each input frame (1 where the bundle does not say)."""
    described = program.manifest.get("onnx") or {}
    for port in described.get("outputs", ()):
        if port["name"] == output.name and port["frames"]:
            return Fraction(port["frames"], described["hop"])
    return Fraction(1)


class Chain(Program):
    """Several programs as one: the inputs of the first, the results of the last.

    hop, latency_frames and rate count input frames of the first program; ratio: output frames for each of them.
    Raises InputError where the output of one program does not fit the input of the next.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        if not programs:
            raise InputError("a chain needs a program.")
        self.programs = tuple(programs)
        first, last = self.programs[0], self.programs[-1]
        self.backend = "+".join(dict.fromkeys(p.backend for p in self.programs))
        self.links = tuple(Link.between(a, b) for a, b in zip(self.programs, self.programs[1:]))
        self.timed, self.outputs = first.timed, tuple(results(last))
        self.statics = tuple({port.name: port for p in self.programs for port in p.statics}.values())
        self.inputs = (*self.timed, *self.statics)
        self.hop, self.rate, self.shortest = first.hop, first.rate, first.shortest
        self.max_frames, self.lengths = first.max_frames, first.lengths
        self.ratio, late = Fraction(1), Fraction(0)
        for program, port in zip(self.programs, [*(link.source for link in self.links), self.outputs[0]]):
            late += program.latency_frames / self.ratio
            self.ratio *= ratio(program, port)
        self.latency_frames = ceil(late)
        self.manifest = {"name": " | ".join(str(p.manifest.get("name", "?")) for p in self.programs)}

    @property
    def state_bytes(self) -> int:
        return sum(program.state_bytes for program in self.programs)

    def stream(
        self, state: bytes | None = None, on_nonfinite: str = "error", inputs: Mapping[str, Any] | None = None,
        kv: str | None = None, position: int = 0,
    ) -> ChainStream:  # fmt: skip
        check_policy(on_nonfinite)
        self.check_no_caches(kv, position)
        inner = "error" if on_nonfinite == "error" else "zero"
        if state is not None:
            return ChainStream(self, self._restored(state, inner, inputs), on_nonfinite)
        given = self.check_statics(inputs, whole=True)
        streams = [p.stream(None, inner, {s.name: given[s.name] for s in p.statics}) for p in self.programs]
        return ChainStream(self, streams, on_nonfinite)

    def _restored(self, state: bytes, inner: str, inputs: Mapping[str, Any] | None) -> list[Stream]:
        """The streams of a snapshot. Raises StreamError for one of another chain."""
        given = self.check_statics(inputs, whole=False)
        count = len(self.programs)
        at = len(MAGIC) + 8 * (count + 1)
        if len(state) < at or not state.startswith(MAGIC):
            raise StreamError(FOREIGN_STATE)
        found, *sizes = struct.unpack_from(f"<{count + 1}q", state, len(MAGIC))
        if found != count or min(sizes) < 0 or at + sum(sizes) != len(state):
            raise StreamError(FOREIGN_STATE)
        streams = []
        for program, size in zip(self.programs, sizes):
            own = {port.name: given[port.name] for port in program.statics if port.name in given}
            streams.append(program.stream(state[at : at + size], inner, own))
            at += size
        return streams


class ChainStream(Stream):
    """One stream of a chain. A push that fails behind the first program leaves it unusable until ``reset``."""

    def __init__(self, program: Chain, streams: Sequence[Stream], on_nonfinite: str) -> None:
        self.program: Chain = program
        self.streams = list(streams)
        self.on_nonfinite = on_nonfinite
        self._broken = False

    def push(self, x: Array | Mapping[str, Array], out: Result | None = None) -> Result:
        if self._broken:
            raise StreamError(BROKEN)
        if self.on_nonfinite == "reset" and not all(map(_is_finite, x.values() if isinstance(x, Mapping) else (x,))):
            self.reset()
        if len(self.streams) == 1:
            return self._last(self.streams[0].push(x, out))
        values = self.streams[0].push(x)
        try:
            for link, stream in zip(self.program.links[:-1], self.streams[1:-1]):
                values = stream.push(self._through(link, values))
            return self._last(self.streams[-1].push(self._through(self.program.links[-1], values), out))
        except Exception:
            self._broken = True
            raise

    def flush(self) -> Result:
        if self._broken:
            raise StreamError(BROKEN)
        values = self.streams[0].flush()
        try:
            for link, stream in zip(self.program.links, self.streams[1:]):
                values = _joined(stream, stream.push(self._through(link, values)), stream.flush())
        except Exception:
            self._broken = True
            raise
        return self._last(values)

    def reset(self) -> None:
        for stream in self.streams:
            stream.reset()
        self._broken = False

    def save(self) -> bytes:
        if self._broken:
            raise StreamError(BROKEN)
        parts = [stream.save() for stream in self.streams]
        sizes = struct.pack(f"<{len(parts) + 1}q", len(parts), *map(len, parts))
        return MAGIC + sizes + b"".join(parts)

    def restore(self, state: bytes) -> None:
        inner = "error" if self.on_nonfinite == "error" else "zero"
        self.streams, self._broken = self.program._restored(state, inner, None), False

    def check(self, x: Array | Mapping[str, Array]) -> None:
        if self._broken:
            raise StreamError(BROKEN)
        self.streams[0].check(x)

    def _set_static(self, name: str, value: Array) -> None:
        for stream in self.streams:
            if any(port.name == name for port in stream.program.statics):
                stream.set(name, value)

    def clone(self) -> ChainStream:
        twin = ChainStream(self.program, [stream.clone() for stream in self.streams], self.on_nonfinite)
        twin._broken = self._broken
        return twin

    @property
    def position(self) -> int:
        return self.streams[0].position

    @staticmethod
    def _through(link: Link, values: Result) -> Array:
        return link.adapt(values[link.source.name] if isinstance(values, dict) else values)

    def _last(self, values: Result) -> Result:
        """Without the model's own states; one array where one result is left."""
        if not isinstance(values, dict):
            return values
        kept = {port.name: values[port.name] for port in self.program.outputs}
        return kept if len(kept) > 1 else next(iter(kept.values()))


def _joined(stream: Stream, *parts: Result) -> Result:
    """What a push and the flush after it gave, along time."""
    ports = stream.program.outputs
    arrays = [[part[port.name] if isinstance(part, dict) else part for part in parts] for port in ports]
    whole = {port.name: np.concatenate(pieces, axis=port.axis or 0) for port, pieces in zip(ports, arrays)}
    return whole if isinstance(parts[0], dict) else next(iter(whole.values()))


def _is_finite(values: Array) -> bool:
    return not isinstance(values, np.ndarray) or values.dtype.kind != "f" or bool(np.isfinite(values).all())
