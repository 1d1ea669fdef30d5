"""Which neurons of a model's feed-forward layers are active on a recording, and how many of them a window misses."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from runnel.compiler.lowering.neurons import FeedForward, with_neurons
from runnel.compiler.streaming.ir import Pointwise, Stream
from runnel.errors import InputError
from runnel.tools.calibrate import Calibration, read_calibration
from runnel.tools.cases import noise

if TYPE_CHECKING:
    from runnel.tools.build import Rewritten

POINTS = 9
"""Sizes of a window, in eighths of all neurons, from none to all."""
FRAMES = 256
SETTLED = 0.25
"""The share of a recording after which misses are counted."""
MOST_TURNS = 4_000_000


def expected_misses(
    rewritten: Rewritten, calibration: Calibration | None, rate: float | None
) -> dict[str, tuple[int, ...]]:
    """What a window of neurons misses on a recording, or on noise where there is none, for the budget's shares; nothing
    where the layers cannot be looked at."""
    graph = rewritten.graph
    layers = [n for n in with_neurons(graph)[0].nodes if isinstance(n, FeedForward)]
    length = graph.next_length(FRAMES)
    if calibration is None:
        rng = np.random.default_rng(0)
        data = {s.name: noise(s, length, rng, graph) for s in graph.inputs}
    else:
        data = read_calibration(calibration, [*graph.inputs, *graph.statics], rate)[1]
    try:
        frames = [active(n, x) for n, x in zip(layers, readings(rewritten, layers, data, length, 1), strict=True)]
    except Exception:
        return {}
    return misses(layers, frames) if len(frames[0]) > 1 else {}


def readings(
    rewritten: Rewritten, layers: Sequence[FeedForward], data: Mapping[str, np.ndarray], piece: int, most: int = 1 << 30
) -> list[np.ndarray]:
    """What each layer reads, (frames, inputs), the recording cut in pieces of so many frames, ``most`` of them. Raises
    InputError."""
    streams = rewritten.graph.inputs
    frames = min(data[s.name].shape[s.axis] for s in streams)
    pieces = (
        {s.name: data[s.name].take(range(first, min(first + piece, frames)), s.axis) for s in streams}
        for first in range(0, frames, piece)[:most]
    )
    return tensors(rewritten, [layer.streams[0] for layer in layers], pieces)


def tensors(
    rewritten: Rewritten, streams: Sequence[Stream], pieces: Iterable[Mapping[str, np.ndarray]]
) -> list[np.ndarray]:
    """Tensors of the offline model that streams stand for, (frames, elements), on pieces of a recording. Raises
    InputError."""
    names = list(dict.fromkeys(s.name for s in streams))
    proto = onnx.ModelProto()
    proto.CopyFrom(rewritten.proto)
    outputs = {o.name for o in proto.graph.output}
    made = {o for n in proto.graph.node for o in n.output} | {i.name for i in proto.graph.input}
    if lacking := [name for name in names if name not in made]:
        raise InputError(f"what a layer reads is no tensor of the model ('{lacking[0]}').")
    new = [n for n in names if n not in outputs]
    proto.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in new)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    axes = {s.name: s.axis for s in streams}
    for inputs in pieces:
        for name, value in zip(names, session.run(names, {**inputs, **rewritten.fixed}), strict=True):
            found[name].append(np.moveaxis(value, axes[name], 0).reshape(value.shape[axes[name]], -1))
    return [np.concatenate(found[s.name]) for s in streams]


def gates(layer: FeedForward, x: np.ndarray) -> np.ndarray:
    """What a layer's Relu reads, for x (frames, inputs)."""
    weight, bias = (layer.up, layer.up_bias) if layer.gate is None else (layer.gate, layer.gate_bias)
    product = x @ weight
    return product if bias is None else product + bias


def active(layer: FeedForward, x: np.ndarray) -> np.ndarray:
    """Which neurons each frame reads, (frames, neurons) bool."""
    if not layer.predicted:
        return gates(layer, x) > 0
    score = x
    for weight in _predictor(layer.streams[1]):
        score = score @ weight if weight.ndim == 2 else score + weight
    return score > 0


def _predictor(score: Stream) -> list[np.ndarray]:
    """The matrices and the bias that a score is made of, in order."""
    found: list[np.ndarray] = []
    while isinstance(score.node, Pointwise) and len(found) < 3:
        found += [x for x in score.node.inputs if isinstance(x, np.ndarray)]
        score = score.node.streams[0]
    return found[::-1]


def misses(layers: Sequence[FeedForward], frames: Sequence[np.ndarray]) -> dict[str, tuple[int, ...]]:
    """For each layer, by name: neurons that a frame reads and that are not there, in 2^-8, where a window of those read
    last, of all layers with neurons of one size, holds 0, 1/8, … of all. frames: for each layer (frames, neurons) bool.
    """
    turns = sum(int(f.sum()) for f in frames) * POINTS
    count = max(2, min(len(frames[0]), FRAMES, MOST_TURNS * len(frames[0]) // max(turns, 1)))
    lists = [[np.flatnonzero(row).tolist() for row in f[:count]] for f in frames]
    sizes = [(layer.gate is not None, layer.up.shape[0], layer.down.shape[1]) for layer in layers]
    curves = miss_curves(lists, sizes, [len(layer.down) for layer in layers], count)
    return {layer.name: curve for layer, curve in zip(layers, curves, strict=True)}


def miss_curves(
    lists: Sequence[Sequence[list[int]]], sizes: Sequence[Hashable], units: Sequence[int], count: int
) -> list[tuple[int, ...]]:
    """For each table: units that a frame chooses and that are not there, in 2^-8, where those chosen last stay, as many
    as 0, 1/8, … of all in tables of the same size. lists: for each table and each of ``count`` frames what is chosen.
    units: how many each table has."""
    settled = int(count * SETTLED)
    found: list[tuple[int, ...]] = [()] * len(lists)
    for size in dict.fromkeys(sizes):
        group = [i for i, s in enumerate(sizes) if s == size]
        every = sum(units[i] for i in group)
        counts = [missed([lists[i] for i in group], every * k // (POINTS - 1), settled) for k in range(POINTS)]
        for at, i in enumerate(group):
            found[i] = tuple(int(256 * each[at] / max(count - settled, 1)) for each in counts)
    return found


def missed(lists: Sequence[Sequence[list[int]]], slots: int, settled: int) -> list[int]:
    """How often each layer misses a neuron (or what else its lists name) after ``settled`` frames."""
    window: OrderedDict[tuple[int, int], None] = OrderedDict()
    counts = [0] * len(lists)
    for frame in range(len(lists[0])):
        for layer, rows in enumerate(lists):
            for neuron in rows[frame]:
                key = (layer, neuron)
                if key in window:
                    window.move_to_end(key)
                    continue
                counts[layer] += frame >= settled
                if slots:
                    window[key] = None
                    if len(window) > slots:
                        window.popitem(last=False)
    return counts
