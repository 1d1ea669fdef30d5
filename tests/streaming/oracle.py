"""The one oracle (DESIGN 3.2): what a stream gives, put together, is what the offline model gives on the whole input.

For many lengths and chunkings, start and end included, with NaN in every input slot that must not be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
import record
import runners

from runnel.compiler.graph.fold import captured_names
from runnel.compiler.graph.model import load
from runnel.compiler.graph.rates import ticks
from runnel.compiler.graph.time_axis import find_time_axis

TOLERANCE = 1e-5
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 16, 17, 23, 31, 40, 53)
FRAGILE = {
    "GRU": 0,
    "LSTM": 0,
    "RNN": 0,
    "ConvTranspose": 0,
    "Scan": -1,
    "GlobalAveragePool": 0,
    "GlobalMaxPool": 0,
}
"""Ops that end the process, or make up a value, when the input of this place has no frames."""
Frames = dict[str, np.ndarray]


class Check(Protocol):
    """``check(model, **options)`` of one runner."""

    def __call__(self, model: bytes, **options: Any) -> Proof: ...


@dataclass
class Proof:
    """What was compared: (step, length, error) of each run, and the lengths that the offline model does not take."""

    runs: list[tuple[int | None, int, float]] = field(default_factory=list)
    refused_lengths: list[int] = field(default_factory=list)

    @property
    def worst(self) -> float:
        return max((e for _, _, e in self.runs), default=0.0)


class Offline:
    """The model on plain onnxruntime.

    A pool whose input is shorter than its window makes up a frame there that no definition of the op has (ONNX: no
    frame; PyTorch: an error), and a recurrence over no frames at all ends the process (so does a transposed
    convolution in onnxruntime 1.23). Such lengths count as not taken.
    """

    def __init__(self, model: bytes, fixed: Frames | None = None) -> None:
        proto = onnx.load_from_string(model)
        self.pools = [n for n in proto.graph.node if n.op_type in ("MaxPool", "AveragePool", "LpPool")]
        self.given = [o.name for o in proto.graph.output]
        watched = {n.input[0] for n in self.pools} - set(self.given) - {i.name for i in proto.graph.input}
        self.recurrences = [
            self._session(_up_to(proto, n.input[FRAGILE[n.op_type]])) for n in proto.graph.node if n.op_type in FRAGILE
        ]
        proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in sorted(watched))
        self.session = self._session(proto)
        self.names = [o.name for o in self.session.get_outputs()]
        self.fixed = fixed or {}

    @staticmethod
    def _session(proto: onnx.ModelProto) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # Onnxruntime 1.31 fuses Pad into pools that cannot hold it, and Transpose with MatMul by a vector wrongly.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def __call__(self, x: Frames) -> Frames | None:
        """None where the model does not take the length."""
        feeds = {**x, **self.fixed}
        try:
            for before in self.recurrences:
                if before.run(None, {i.name: feeds[i.name] for i in before.get_inputs()})[0].size == 0:
                    return None
            values = {**feeds, **dict(zip(self.names, self.session.run(None, feeds)))}
        except Exception:  # onnxruntime's exceptions share no base class of their own
            return None
        if any(_too_short(n, values[n.input[0]].shape[2:]) for n in self.pools):
            return None
        return {n: values[n] for n in self.given}


def _up_to(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The part of the model that makes one tensor."""
    if name in {i.name for i in model.graph.input}:
        inputs = [i for i in model.graph.input if i.name == name]
        same = onnx.helper.make_node("Identity", [name], [f"{name}/same"])
        outputs = [onnx.helper.make_empty_tensor_value_info(f"{name}/same")]
        graph = onnx.helper.make_graph([same], "input", inputs, outputs)
        return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    needed, nodes = {name}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            needed.update(*(captured_names(a.g) for a in node.attribute if a.HasField("g")))
    graph = onnx.helper.make_graph(
        nodes[::-1], "part", [i for i in model.graph.input if i.name in needed],
        [onnx.helper.make_empty_tensor_value_info(name)], [t for t in model.graph.initializer if t.name in needed],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _too_short(pool: onnx.NodeProto, size: tuple[int, ...]) -> bool:
    attrs = {a.name: list(a.ints) for a in pool.attribute}
    kernel = attrs["kernel_shape"]
    if "auto_pad" in attrs:
        return False
    ceil = next((a.i for a in pool.attribute if a.name == "ceil_mode"), 0)
    extra = [s - 1 if ceil else 0 for s in attrs.get("strides", [1] * len(kernel))]
    pads, dilations = attrs.get("pads", [0] * 2 * len(kernel)), attrs.get("dilations", [1] * len(kernel))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    return any(n + sum(pads[i :: len(kernel)]) + extra[i] < spans[i] for i, n in enumerate(size))


class Source:
    """Random inputs of any length for a model's inputs."""

    def __init__(
        self, model: bytes, seed: int, time_axis: dict[str, int] | None, window: int | None, scale: float,
        rates: dict[str, float] | None = None,
    ) -> None:  # fmt: skip
        graph = load(model)
        self.axes = find_time_axis(graph, time_axis, window, rates)
        self.each = dict.fromkeys(self.axes, 1) | (ticks(rates)[0] if rates else {})
        self.ports = [p for p in graph.inputs if p.name in self.axes]
        self.rng = np.random.default_rng(seed)
        self.scale = scale

    def __call__(self, length: int) -> Frames:
        made = {}
        for p in self.ports:
            shape = [
                length * self.each[p.name] if self.axes[p.name] == a else int(d or 1) for a, d in enumerate(p.shape)
            ]
            kind = np.dtype(p.dtype).kind
            if kind == "f":
                made[p.name] = (self.rng.standard_normal(shape) * self.scale).astype(p.dtype)
            else:
                made[p.name] = self.rng.integers(0, 2 if kind == "b" else 9, shape).astype(p.dtype)
        return made

    def cut(self, x: Frames, start: int, stop: int) -> Frames:
        bounds = {n: slice(start * each, stop * each) for n, each in self.each.items()}
        return {n: v[(slice(None),) * self.axes[n] + (bounds[n],)] for n, v in x.items()}


def chunking(rng: np.random.Generator, length: int, style: int) -> list[int]:
    """Where the input is cut: one by one, all at once, in prime sizes, or anywhere (empty pushes too)."""
    if style == 0:
        return list(range(length + 1))
    if style == 1:
        return [0, length]
    if style == 2:
        return [*range(0, length, 3), length]
    return [0, *sorted(int(c) for c in rng.integers(0, length + 1, rng.integers(0, 6))), length]


def streamed(stream: runners.Stream, x: Frames, cuts: Sequence[int], source: Source, joins: dict[str, int]) -> Frames:
    """Everything that pushes and the flush gave, joined along each output's time axis."""
    parts: dict[str, list[np.ndarray]] = {}
    for start, stop in zip(cuts, cuts[1:]):
        for name, value in stream.push(source.cut(x, start, stop)).items():
            parts.setdefault(name, []).append(value)
    for name, value in stream.flush().items():
        parts.setdefault(name, []).append(value)
    filled = {n: [p for p in v if p.size] or v[:1] for n, v in parts.items()}
    return {n: v[0] if len(v) == 1 else np.concatenate(v, _unlike(parts[n], joins[n])) for n, v in filled.items()}


def _unlike(parts: Sequence[np.ndarray], usual: int) -> int:
    """The axis on which parts differ in size, where one does: that is time."""
    shapes = {p.shape for p in parts}
    differs = [axis for axis in range(parts[0].ndim) if len({s[axis] for s in shapes}) > 1]
    return differs[0] if len(differs) == 1 else usual


def joined_along(a: Frames, b: Frames) -> dict[str, int]:
    """The axis on which the outputs of two lengths differ: time. 0 where none does."""
    axes = {}
    for name in a:
        differs = [i for i, (p, q) in enumerate(zip(a[name].shape, b[name].shape)) if p != q]
        axes[name] = differs[0] if differs else 0
    return axes


def deviation(got: np.ndarray, wanted: np.ndarray, usual: float = 1e-6) -> float:
    """The largest error relative to the range of what is wanted; infinite where NaN, inf or discrete values differ.

    usual: the range at other lengths, where that is larger.
    """
    if not wanted.size:
        return 0.0
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(got, wanted) else np.inf
    finite = np.isfinite(wanted)
    same = np.array_equal(finite, np.isfinite(got))
    if not same or not np.array_equal(got[~finite], wanted[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    error = np.abs(got[finite].astype(np.float64) - wanted[finite])
    if wanted.dtype == np.float16:  # rounded at last: neighbours are as good
        error = np.maximum(error - np.spacing(np.maximum(np.abs(got[finite]), np.abs(wanted[finite]))), 0.0)
    return float(error.max()) / max(extent(wanted), usual)


def extent(values: np.ndarray) -> float:
    """The largest finite magnitude."""
    finite = values[np.isfinite(values)]
    return float(np.abs(finite.astype(np.float64)).max()) if finite.size else 0.0


def compare(got: Frames, wanted: Frames, what: str, tolerance: float, usual: dict[str, float], codes: int = 0) -> float:
    """The worst error; AssertionError that says where, if it is beyond the tolerance or a length is wrong."""
    assert set(got) == set(wanted), f"{what}: outputs {sorted(got)}, not {sorted(wanted)}"
    worst = 0.0
    for name, w in wanted.items():
        g = got[name]
        assert g.shape == w.shape, f"{what}: '{name}' has shape {g.shape}, the offline model gives {w.shape}"
        assert g.dtype == w.dtype, f"{what}: '{name}' is {g.dtype}, the offline model gives {w.dtype}"
        if codes and w.dtype.itemsize == 1 and w.size and np.abs(g.astype(int) - w).max() <= codes:
            continue
        error = deviation(g, w, usual[name])
        if error > tolerance:
            apart = np.abs(np.nan_to_num(g.astype(np.float64), nan=np.inf) - w.astype(np.float64))
            place = np.unravel_index(int(np.argmax(np.nan_to_num(apart, nan=0.0))), w.shape)
            raise AssertionError(f"{what}: '{name}' is off by {error:.3g} of its range at {[int(p) for p in place]}")
        worst = max(worst, error)
    return worst


def check(
    model: bytes, *, runner: runners.Runner = runners.reference, lengths: Sequence[int] | None = None,
    steps: Sequence[int | None] = (None, 4, 11), seed: int = 0, tolerance: float = TOLERANCE, scale: float = 1.0,
    at_least: int = 3, feeds: Any = None, expected: bytes | None = None, codes: int = 0,
    context: tuple[int, int] = (0, 0),
    **options: Any,
) -> Proof:  # fmt: skip
    """Compare stream and offline model; raises AssertionError, or Refused as the compiler does.

    lengths: input lengths to try (those the offline model refuses are left out). steps: frames a call asked of the
    compiler, None for the smallest. at_least: how many lengths must have been compared. feeds: length → inputs, instead
    of noise. expected: the offline model to compare with, where it is another one. codes: how far 8-bit codes may be
    apart. context: frames before and behind each window that the offline model takes too, zeros outside the input.
    options: what the compiler takes (time_axis, window, hop, ...).
    """
    offline = Offline(model if expected is None else expected, options.get("statics"))
    window, hop = options.get("window"), options.get("hop") or 1
    rates = rate if isinstance(rate := options.get("rate"), dict) else None
    source = Source(model, seed, options.get("time_axis"), window, scale, rates)
    rng = np.random.default_rng(seed + 1)
    tried = list(lengths if lengths is not None else LENGTHS)
    if window is not None:
        steps = steps[:1]
        beyond = (-1, 0, 1, hop, 3 * hop + 1)
        tried = list(lengths if lengths is not None else (window + n for n in beyond))
    compiled = {s: runner(model, {**options, **({"step": s} if s is not None else {})}) for s in steps}
    proof = Proof()
    joins: dict[str, int] = {}
    usual: dict[str, float] = {}
    for turn, length in enumerate(tried):
        x = feeds(length) if feeds is not None else source(length)
        wanted = offline(x) if window is None else windows(offline, source, x, length, window, hop, context)
        if wanted is None:
            proof.refused_lengths.append(length)
            continue
        if not joins:
            joins, usual = dict.fromkeys(wanted, 0), dict.fromkeys(wanted, 1e-6)
            if window is None:
                joins, ranges = _survey(offline, feeds or source, tried)
                usual = ranges if feeds is None else usual
        for i, (step, make) in enumerate(compiled.items()):
            cuts = chunking(rng, length, (turn + i) % 4)
            what = f"length {length}, step {step}, cuts {cuts}"
            got = streamed(make(), x, cuts, source, joins)
            proof.runs.append((step, length, compare(got, wanted, what, tolerance, usual, codes)))
    compared = len({n for _, n, _ in proof.runs})
    if proof.runs and not any(context):  # another network than the model
        record.saw(model, options, getattr(runner, "runs_on", "reference"), record.EXACT)
    assert compared >= min(at_least, len(tried)), f"the offline model takes only {compared} of the lengths {tried}"
    return proof


def _survey(
    offline: Offline, source: Callable[[int], Frames], tried: Sequence[int]
) -> tuple[dict[str, int], dict[str, float]]:
    """The time axis of each output, the one that differs between the shortest and the longest input; and its range."""
    results = [r for n in (*sorted(tried), 2 * max(tried) + 64) if (r := offline(source(n))) is not None]
    return joined_along(results[0], results[-1]), {n: max(1e-6, *(extent(r[n]) for r in results)) for n in results[0]}


def windows(
    offline: Offline, source: Source, x: Frames, length: int, window: int, hop: int, context: tuple[int, int] = (0, 0)
) -> Frames | None:
    """What the offline model gives on frames i … i + window - 1 for every i that is a multiple of ``hop``, stacked.

    context: so many frames before and behind them too, which are zeros outside the input.
    """
    wider = window + sum(context)
    if any(context):
        x = {n: np.pad(v, [context if a == source.axes[n] else (0, 0) for a in range(v.ndim)]) for n, v in x.items()}
    results = [offline(source.cut(x, i, i + wider)) for i in range(0, length - window + 1, hop)]
    if any(r is None for r in results):
        return None
    if not results:
        one = offline(source(wider))
        return None if one is None else {n: np.stack([v])[:0] for n, v in one.items()}
    return {n: np.stack([r[n] for r in results if r is not None]) for n in offline.given}


def opset_of(model: bytes) -> int:
    """The opset of the standard domain."""
    return int(next(o.version for o in onnx.load_from_string(model).opset_import if o.domain in ("", "ai.onnx")))
