"""Programs of one attention over a cache, whose queries, keys and values are inputs."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from reference import Reference

from runnel.compiler.codegen import KernelModule, Target
from runnel.compiler.lowering.lower import lower
from runnel.compiler.lowering.plan import Planner
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Pointwise, Source, Stream, StreamFact, StreamGraph, StreamNode
from runnel.compiler.streaming.kinds.cache import CachedAttend, Rotary
from runnel.kv import parse
from runnel.runtime.backends.memory import aligned
from runnel.runtime.backends.native import NativeProgram

FLOAT = "float32"
_PROGRAMS: dict[Any, NativeProgram] = {}


@dataclass
class Attention:
    """Of how many heads and features, and what else ``CachedAttend`` has. layers: how many read the same inputs."""

    heads: int = 4
    kv_heads: int = 2
    key_dim: int = 8
    value_dim: int = 8
    hop: int = 4
    layers: int = 1
    retain: bool = False
    axes: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    def streams(self) -> dict[str, tuple[tuple[int | None, ...], str]]:
        shapes: dict[str, tuple[tuple[int | None, ...], str]] = {
            "q": ((1, self.heads, None, self.key_dim), FLOAT),
            "k": ((1, self.kv_heads, None, self.key_dim), FLOAT),
        }
        if not self.more.get("shared"):
            shapes["v"] = ((1, self.kv_heads, None, self.value_dim), FLOAT)
        if self.retain:
            shapes["retain"] = ((1, self.kv_heads, None), FLOAT)
        if self.axes:
            shapes["positions"] = ((1, self.axes, None), "int64")
        return shapes

    def graph(self, kv: str, max_frames: int | None = None) -> StreamGraph:
        time = Count.time()
        ins: dict[str, Stream] = {}
        nodes: list[StreamNode] = []
        for name, (shape, dtype) in self.streams().items():
            ins[name] = Stream(name, shape, dtype, StreamFact(shape.index(None), time, time, "q"))
            ins[name].node = Source(name, "Source", [], ins[name])
            nodes.append(ins[name].node)  # type: ignore[arg-type]
        outputs: dict[str, Stream] = {}
        operands = [ins["q"], ins["k"], ins.get("v"), ins.get("retain"), ins.get("positions")]
        for layer in range(self.layers):
            shape = (1, self.heads, None, self.value_dim)
            made = Stream(f"a{layer}", shape, FLOAT, StreamFact(2, time, time, "q"))
            node = CachedAttend(f"attention{layer}", "CachedAttention", operands, made, layer=layer, **self.more)
            made.node = node
            out = Stream(f"y{layer}", shape, FLOAT, StreamFact(2, time, time, "q"))
            out.node = Pointwise(f"negated{layer}", "Neg", [made], out)
            nodes += [node, out.node]
            outputs[out.name] = out
        return StreamGraph("attention", list(ins.values()), outputs, nodes, 17, max_frames=max_frames, kv=kv)

    @property
    def node(self) -> CachedAttend:
        """The attention of the first layer."""
        return next(n for n in self.graph("full").nodes if isinstance(n, CachedAttend))

    def program(self, kv: str, max_frames: int | None = None, poison: bool = True) -> NativeProgram:
        key = (repr(self), kv, max_frames, poison)
        if key not in _PROGRAMS:
            _PROGRAMS[key] = self._program(kv, max_frames, poison)
        return _PROGRAMS[key]

    def _program(self, kv: str, max_frames: int | None, poison: bool) -> NativeProgram:
        native = Planner(lower(self.graph(kv, max_frames)), self.hop, KernelModule(Target.host())).build()
        ports = [
            {"name": name, "dtype": dtype, "axis": shape.index(None), "shape": list(shape)}
            for name, (shape, dtype) in self.streams().items()
        ]
        outs = [
            {"name": f"y{i}", "dtype": FLOAT, "axis": 2, "shape": [1, self.heads, None, self.value_dim]}
            for i in range(self.layers)
        ]
        manifest = {
            "name": "attention", "hop": self.hop, "latency_frames": 0, "program_hash": "cd" * 32, "inputs": ports,
            "clock": {"rate": None, "max_frames": max_frames}, "outputs": outs,
            "kv": {"layers": [{"key_dim": self.key_dim, "value_dim": self.value_dim}] * self.layers},
        }  # fmt: skip
        weights = aligned(len(native.weights))
        weights[:] = np.frombuffer(native.weights, np.uint8)
        code = mmap.mmap(-1, len(native.image.code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(native.image.code)
        return NativeProgram(manifest, native.plan, weights, np.frombuffer(code, np.uint8), poison)

    def inputs(self, frames: int, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        found = {}
        for name, (shape, dtype) in self.streams().items():
            size = tuple(frames if d is None else d for d in shape)
            found[name] = rng.standard_normal(size).astype(np.float32)
            if dtype == "int64":
                found[name] = rng.integers(0, 1 << 31, size)
        return found


def rope(pairs: int, base: float = 10000.0, **more: Any) -> Rotary:
    return Rotary(base ** (-np.arange(pairs) / pairs), **more)


def cut(x: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    """Some frames of all inputs."""
    return {name: a[:, :, start:stop] for name, a in x.items()}


def streamed(stream: Any, x: dict[str, np.ndarray], chunks: tuple[int, ...] = ()) -> np.ndarray:
    """The first output for inputs that come in chunks, the rest frame by frame: (heads, T, Dv), not negated."""
    frames, at, found = x["q"].shape[2], 0, []
    for size in [*chunks, *[1] * (frames - sum(chunks))]:
        y = stream.push(cut(x, at, at + size))
        found.append(-(y["y0"] if isinstance(y, dict) else y)[0])
        at += size
    return np.concatenate(found, axis=1)


def expected(model: Attention, kv: str, x: dict[str, np.ndarray], start: int) -> tuple[np.ndarray, Reference]:
    """(heads, T, Dv) and the model that made it."""
    reference = Reference(model.node, parse(kv), start)
    rows = []
    for n in range(x["q"].shape[2]):
        told = [int(p) for p in x["positions"][0, :, n]] if "positions" in x else None
        values = x["v"][0, :, n] if "v" in x else x["k"][0, :, n, : model.value_dim]
        retain = x["retain"][0, :, n] if "retain" in x else None
        rows.append(reference.step(x["q"][0, :, n], x["k"][0, :, n], values, retain, told))
    return np.stack(rows, axis=1), reference


def deviation(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest over all steps, as a part of the range."""
    assert np.isfinite(got).all()
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
