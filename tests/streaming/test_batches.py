"""Any sequence of joins, pushes, snapshots and ends in a batch gives what streams of their own give, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import Net, stack

import runnel
from runnel.errors import StreamError

LANES = 5
X = np.random.default_rng(8).standard_normal((1, 3, 400)).astype(np.float32)
EMB = np.random.default_rng(9).standard_normal((4, 1, 5)).astype(np.float32)


def gru() -> bytes:
    net, x = stack()
    y = net.op("Transpose", net.conv(x, 3, 4, 3, pads=[2, 0]), perm=[2, 0, 1])
    return net.model(net.op("Squeeze", net.recurrent("GRU", y, 4, 3, outputs=2)[0], net.const([1])))


def strided() -> bytes:
    net, x = stack()
    y = net.op("Relu", net.conv(x, 3, 4, 5, strides=[3], pads=[4, 0]))
    return net.model(net.conv_transpose(y, 4, 2, 4, strides=[2]), y)


def ahead() -> bytes:
    net, x = stack()
    y = net.op("Relu", net.conv(x, 3, 4, 7, pads=[3, 3], dilations=[1]))
    return net.model(net.op("Add", net.conv(y, 4, 3, 3, pads=[1, 1]), x))


def windows() -> bytes:
    net = Net()
    x = net.input([1, 3, 16])
    y = net.op("Relu", net.conv(x, 3, 4, 5))
    return net.model(net.op("Gemm", net.op("Flatten", y), net.weight(48, 2), net.weight(2)))


def static() -> bytes:
    net, x = stack()
    gain = net.op(
        "Unsqueeze", net.op("Gemm", net.input([1, 5], "emb"), net.weight(5, 4), net.weight(4)), net.const([2])
    )
    return net.model(net.op("Mul", net.conv(x, 3, 4, 3, pads=[1, 1]), gain))


def wide() -> bytes:
    """Weights enough that rows of several streams are made together: taps in tables and runs, a residual, a GRU."""
    net, x = stack()
    y = net.op("Relu", net.conv(x, 3, 32, 16, pads=[15, 0]))
    y = net.op("Add", net.conv(y, 32, 32, 3, pads=[4, 0], dilations=[2]), y)
    z = net.op("Transpose", net.conv(y, 32, 17, 2, pads=[0, 1]), perm=[2, 0, 1])
    return net.model(net.op("Squeeze", net.recurrent("GRU", z, 17, 24, outputs=2)[0], net.const([1])))


def fourier() -> bytes:
    """There and back by a windowed Fourier basis, in rows of several streams."""
    net, x = stack()
    turns = np.outer(np.arange(65), np.arange(128)) % 128 * (2 * np.pi / 128)
    weight = net.const(np.concatenate([np.cos(turns), np.sin(turns)])[:, None] * np.hanning(129)[:-1] / 30)
    y = net.op("Conv", net.conv(x, 3, 1, 1), weight, strides=[16], pads=[112, 0])
    return net.model(net.op("ConvTranspose", net.op("Tanh", y), weight, strides=[16]))


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gru": (gru, {"hop": 4}), "strided": (strided, {}), "ahead": (ahead, {"hop": 2}),
    "windows": (windows, {"window": 16, "hop": 3}), "static": (static, {"hop": 3}),
    "fourier": (fourier, {}), "wide": (wide, {}), "wide-3": (wide, {"hop": 3}), "wide-9": (wide, {"hop": 9}),
}  # fmt: skip


@pytest.fixture(scope="module", params=[(m, b) for m in MODELS for b in ("native", "onnxruntime")], ids="-".join)
def program(request, tmp_path_factory):
    name, backend = request.param
    build, options = MODELS[name]
    path = tmp_path_factory.mktemp("batch") / f"{name}.rnl"
    runnel.compile(build(), path, **options)
    return runnel.load(path, backend=backend, poison=True)


lanes = st.integers(0, LANES - 1)
pushes = st.dictionaries(lanes, st.integers(0, 23), min_size=1)
ACTS = st.one_of(
    st.tuples(st.just("push"), pushes), st.tuples(st.just("push"), pushes), st.tuples(st.just("join"), st.just(0)),
    st.tuples(st.sampled_from(["leave", "reset", "flush", "clone", "save", "restore", "set", "gap"]), lanes),
)  # fmt: skip


class Pair:
    """A batch, and beside each of its lanes a stream of its own that does the same."""

    def __init__(self, program: Any) -> None:
        self.program, self.batch = program, program.batch(LANES)
        self.alone: dict[int, Any] = {}
        self.at: dict[int, int] = {}
        self.saved: tuple[bytes, bytes] | None = None

    def same(self, in_batch: Any, alone: Any) -> Any:
        """Both results or both errors; AssertionError where they differ."""
        results = []
        for act in (in_batch, alone):
            try:
                value = act()
            except StreamError as error:
                value = str(error).partition(": ")[2] if act is in_batch else str(error)
            results.append(value)
        first, second = results
        parts = [list(r.items()) if isinstance(r, dict) else [("", r)] for r in (first, second)]
        for (name, x), (other, y) in zip(*parts, strict=True):
            assert name == other
            same = x.shape == y.shape and x.tobytes() == y.tobytes() if isinstance(x, np.ndarray) else x == y
            assert same, (x, y)
        return first

    def take(self, lane: int, frames: int) -> np.ndarray:
        start = self.at[lane] = (self.at[lane] + 7 * lane) % 300
        self.at[lane] += frames
        return X[..., start : start + frames]

    def push(self, sizes: dict[int, int]) -> None:
        part = {lane: self.take(lane, n) for lane, n in sizes.items() if lane in self.alone}
        for lane in list(part):  # a lane that has ended would refuse the whole push
            try:
                self.alone[lane].check(part[lane])
            except StreamError:
                self.same(
                    lambda lane=lane: self.batch.push({lane: part[lane]}),
                    lambda lane=lane: self.alone[lane].push(part[lane]),
                )
                del part[lane]
        got = self.batch.push(part)
        for lane, x in part.items():
            self.same(lambda lane=lane: got[lane], lambda lane=lane, x=x: self.alone[lane].push(x))

    def join(self, _: int) -> None:
        if len(self.alone) < LANES:
            statics = {"emb": EMB[0]} if self.program.statics else None
            lane = self.batch.join(inputs=statics)
            self.alone[lane], self.at[lane] = self.program.stream(inputs=statics), 0

    def act(self, what: str, lane: int) -> None:
        if lane not in self.alone:
            return
        batch, alone = self.batch, self.alone[lane]
        if what == "leave":
            batch.leave(lane)
            del self.alone[lane]
        elif what == "reset":
            self.same(lambda: batch.reset(lane), alone.reset)
        elif what == "flush":
            self.same(lambda: batch.flush(lane), alone.flush)
        elif what == "clone" and len(self.alone) < LANES:
            twin = batch.clone(lane)
            self.alone[twin], self.at[twin] = alone.clone(), self.at[lane]
        elif what == "save":
            self.saved = batch.save(lane), alone.save()
            assert self.saved[0] == self.saved[1] or self.program.backend == "onnxruntime"
        elif what == "restore" and self.saved:
            batch.restore(lane, self.saved[0])
            alone.restore(self.saved[1])
        elif what == "set" and self.program.statics:
            value = EMB[self.at[lane] % 4]
            batch.set(lane, "emb", value)
            alone.set("emb", value)
        elif what == "gap":
            self.same(lambda: batch.gap(lane, 2), lambda: alone.gap(2))
        if lane in self.alone:
            assert batch.position(lane) == self.alone[lane].position


def test_a_gap_of_one_lane_is_over_with_its_call(program):
    """The next push without that lane takes nothing of it again."""
    pair = Pair(program)
    for _ in range(3):
        pair.join(0)
    for what, argument in (("push", {0: 4}), ("gap", 1), ("push", {0: 3}), ("push", {2: 0}), ("gap", 1), ("flush", 1)):
        pair.push(argument) if what == "push" else pair.act(what, argument)
    assert pair.batch.position(1) == pair.alone[1].position


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(acts=st.lists(ACTS, min_size=5, max_size=40))
def test_a_batch_is_streams_side_by_side(program, acts):
    pair = Pair(program)
    for _ in range(3):
        pair.join(0)
    for what, argument in acts:
        if what in ("push", "join"):
            getattr(pair, what)(argument)
        else:
            pair.act(what, argument)
