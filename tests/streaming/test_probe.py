"""What inspect reports, against a probe that changes one input frame at a time and looks which outputs change."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import oracle
import pytest
from nets import Net, stack
from recipes import Builder, random_recipe
from runners import reference

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.ir import Stream, StreamGraph
from runnel.compiler.streaming.report import reaches, report
from runnel.errors import InputError, Refused

LENGTH = 60


def influences(model: bytes, length: int, name: str, axis: int, tries: int = 3) -> np.ndarray | None:
    """(output frames, input frames): which input frame changes which output frame, over a few random recordings."""
    offline, source = oracle.Offline(model), oracle.Source(model, 0, None, None, 1.0)
    found: np.ndarray | None = None
    for turn in range(tries):
        x = source(length)
        (port,) = x
        base = offline(x)
        if base is None:
            return None
        before = np.moveaxis(base[name], axis, 0)
        table = np.zeros((len(before), length), bool)
        for m in range(length):
            changed = x[port].copy()
            changed[(slice(None),) * source.axes[port] + (m,)] += (5.0, -3.0, 0.5)[turn]
            again = offline({port: changed})
            assert again is not None
            after = np.moveaxis(again[name], axis, 0)
            table[:, m] = (after != before).reshape(len(before), -1).any(1)
        found = table if found is None else found | table
    return found


def edges(table: np.ndarray, rate: Fraction) -> tuple[Fraction, Fraction]:
    """The farthest input frames that any output frame read, relative to the one it lines up with."""
    places = [(Fraction(int(m)) - Fraction(int(n)) / rate) for n, m in np.argwhere(table)]
    return min(places), max(places)


def only_stream(graph: StreamGraph) -> tuple[str, Stream]:
    name, value = next((k, v) for k, v in graph.outputs.items() if isinstance(v, Stream))
    return name, value


def conv_stack(net: Net, x: str) -> str:
    h = net.op("Tanh", net.conv(x, 3, 4, 3, pads=[4, 0], dilations=[2]))
    return net.conv(h, 4, 4, 5, pads=[2, 2])


def strided(net: Net, x: str) -> str:
    h = net.conv(x, 3, 4, 4, strides=[2], pads=[1, 1])
    return net.conv(h, 4, 4, 3, strides=[2], pads=[1, 1])


def hourglass(net: Net, x: str) -> str:
    h = net.conv(x, 3, 4, 4, strides=[2], pads=[1, 1])
    h = net.conv(net.op("Tanh", h), 4, 4, 3, pads=[1, 1])
    return net.conv_transpose(h, 4, 3, 4, strides=[2], pads=[1, 1])


def cropped(net: Net, x: str) -> str:
    h = net.conv(x, 3, 3, 5, pads=[4, 4])
    return net.op("Slice", h, net.const([0]), net.const([-4]), net.const([2]))


def looking_ahead(net: Net, x: str) -> str:
    return net.op("Add", net.op("Slice", x, net.const([3]), net.const([1 << 60]), net.const([2])),
                  net.op("Slice", x, net.const([0]), net.const([-3]), net.const([2])))  # fmt: skip


def pooled(net: Net, x: str) -> str:
    h = net.op("AveragePool", x, kernel_shape=[3], strides=[3])
    return net.conv(h, 3, 3, 2, pads=[1, 0])


def resized(net: Net, x: str, scale: float, mode: str) -> str:
    h = net.op("Resize", net.conv(x, 3, 3, 3, pads=[1, 1]), "", net.const(np.array([1.0, 1.0, scale])), mode=mode)
    return net.conv(h, 3, 3, 2, pads=[1, 0])


def linear_up(net: Net, x: str) -> str:
    return resized(net, x, 2.0, "linear")


def nearest_up(net: Net, x: str) -> str:
    return resized(net, x, 3.0, "nearest")


def linear_down(net: Net, x: str) -> str:
    return resized(net, x, 0.5, "linear")


def every_third(net: Net, x: str) -> str:
    h = net.conv(x, 3, 3, 3, pads=[1, 1])
    return net.op("Slice", h, net.const([1]), net.const([1 << 60]), net.const([2]), net.const([3]))


def average_of_what_is_there(net: Net, x: str) -> str:
    return net.op("AveragePool", x, kernel_shape=[4], strides=[3], pads=[2, 1], ceil_mode=1)


def shuffled(net: Net, x: str) -> str:
    h = net.op("Reshape", net.conv(x, 3, 6, 3, pads=[1, 1]), net.const([1, 3, 2, -1]))
    return net.op("Reshape", net.op("Transpose", h, perm=[0, 1, 3, 2]), net.const([1, 3, -1]))


def stacked(net: Net, x: str) -> str:
    h = net.op("Reshape", net.conv(x, 3, 2, 3, pads=[2, 0]), net.const([1, 2, -1, 2]))
    return net.op("Reshape", net.op("Transpose", h, perm=[0, 1, 3, 2]), net.const([1, 4, -1]))


SHAPES = [
    conv_stack, strided, hourglass, cropped, looking_ahead, pooled, linear_up, nearest_up, linear_down, every_third,
    average_of_what_is_there, shuffled, stacked,
]  # fmt: skip


def shaped(make: Any) -> tuple[bytes, StreamGraph, str, Stream]:
    """The model of a shape, its stream graph, and the name and stream of its output."""
    net, x = stack()
    model = net.model(make(net, x))
    graph = analyse(load(model))
    return model, graph, *only_stream(graph)


@pytest.mark.parametrize("make", SHAPES, ids=lambda f: f.__name__)
def test_reach_is_what_a_probe_sees(make: Any) -> None:
    model, graph, name, stream = shaped(make)
    table = influences(model, LENGTH, name, stream.axis)
    assert table is not None
    reach, figures = reaches(graph)[stream], report(graph)
    first, last = edges(table, stream.fact.rate)
    assert (ceil(first), ceil(last)) == (ceil(reach.first), ceil(reach.last))
    assert figures.receptive_field == ceil(last) - ceil(first) + 1
    assert figures.look_ahead == max(0, ceil(last))


@pytest.mark.parametrize("make", SHAPES, ids=lambda f: f.__name__)
def test_a_frame_is_given_when_its_last_input_is_there(make: Any) -> None:
    """The latency is exact: no frame comes before it is certain, none waits longer than a probe says."""
    model, graph, name, stream = shaped(make)
    table = influences(model, LENGTH, name, stream.axis)
    assert table is not None
    rate = stream.fact.rate
    stable = [n for n in range(len(table)) if stream.fact.due(n) <= LENGTH // 2]
    needed = {n: int(np.nonzero(table[n])[0].max()) + 1 for n in stable if table[n].any()}
    for n, t in needed.items():
        assert stream.fact.due(n) >= t, f"frame {n} is given at {stream.fact.due(n)} and needs input frame {t - 1}"
    late = max(t - (n * rate.denominator // rate.numerator + 1) for n, t in needed.items())
    offline, source = oracle.Offline(model), oracle.Source(model, 0, None, None, 1.0)
    results = {t: offline(source(t)) for t in range(1, LENGTH)}
    exists = {t: v[name].shape[stream.axis] for t, v in results.items() if v is not None}
    certain = {n: min(t for t in exists if all(exists[u] > n for u in exists if u >= t)) for n in needed}
    late = max(late, *(t - (n * rate.denominator // rate.numerator + 1) for n, t in certain.items()))
    assert report(graph).latency_frames == max(0, late)


@pytest.mark.parametrize("make", SHAPES, ids=lambda f: f.__name__)
def test_a_stream_gives_frames_when_the_facts_say(make: Any) -> None:
    model, graph, name, stream = shaped(make)
    run = reference(model, {})()
    given = 0
    source = oracle.Source(model, 0, None, None, 1.0)
    frames = source(LENGTH)
    for t in range(LENGTH):
        given += run.push(source.cut(frames, t, t + 1))[name].shape[stream.axis]
        assert given <= stream.fact.made(t + 1)
    assert given >= stream.fact.made(LENGTH) - stream.fact.rate * report(graph).natural_hop - stream.fact.hold


@pytest.mark.parametrize("seed", range(40))
def test_no_random_graph_reads_beyond_its_reach(seed: int) -> None:
    try:
        model = Builder(random_recipe(np.random.default_rng(seed + 5000)), seed).model()
        graph = analyse(load(model))
    except (Refused, InputError):
        pytest.skip("this recipe is refused")
    except Exception:  # onnx and onnxruntime raise many types for a model that no length fits
        pytest.skip("this recipe makes no model")
    name, stream = next(((k, v) for k, v in graph.outputs.items() if isinstance(v, Stream)), (None, None))
    if name is None or stream is None or stream.axis < 0 or not stream.fact.rate:
        pytest.skip("it has no output over time")
    table = influences(model, 40, name, stream.axis, tries=1)
    if table is None or not table.any():
        pytest.skip("it takes no input of this length")
    reach = reaches(graph)[stream]
    first, last = edges(table, stream.fact.rate)
    assert last <= reach.last
    assert reach.endless or first >= reach.first
    for n in range(len(table)):
        if table[n].any():
            assert stream.fact.due(n) > np.nonzero(table[n])[0].max() or stream.fact.due(n) > 40
