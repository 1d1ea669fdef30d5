"""Workers share kernels and lanes, and no output bit depends on how many there are."""

from __future__ import annotations

import struct
import threading

import numpy as np
import pytest
from nets import Net, stack

import runnel
from runnel.compiler.lowering import plan
from runnel.compiler.lowering.plan import CALL, SHARE
from runnel.errors import InputError, RunnelError
from runnel.runtime.bundle import Bundle

X = np.random.default_rng(3).standard_normal((1, 6, 90)).astype(np.float32)
COUNTS = (1, 2, 3, 7)


def dense() -> bytes:
    """Panels of several widths, taps in a table and in a run, few outputs."""
    net, x = stack(6)
    y = net.op("Relu", net.conv(x, 6, 300, 3, pads=[2, 0]))
    y = net.op("Add", net.conv(y, 300, 300, 2, pads=[3, 0], dilations=[3]), y)
    return net.model(net.conv(net.op("Tanh", net.conv(y, 300, 270, 1)), 270, 3, 1))


def grouped() -> bytes:
    net, x = stack(6)
    y = net.conv(net.conv(x, 6, 128, 1), 128, 128, 3, group=8, pads=[1, 1])
    return net.model(net.op("Relu", net.conv(y, 128, 128, 4, group=128, pads=[3, 0])))


def images() -> bytes:
    """Convolutions over space, and products of the rows within a frame."""
    net = Net()
    x = net.input(["T", 6, 9, 11])
    y = net.op("Relu", net.conv(x, 6, 24, [3, 3], pads=[1, 1, 1, 1]))
    y = net.op("Relu", net.conv(y, 24, 24, [3, 3], pads=[1, 1, 1, 1], strides=[2, 2], group=24))
    y = net.op("Reshape", y, net.const([0, 24, 30]))
    return net.model(net.op("MatMul", y, net.weight(30, 50)))


NETS = {"dense": (dense, 1), "dense-9": (dense, 9), "grouped": (grouped, 5), "images": (images, 1)}


@pytest.fixture(scope="module", params=NETS)
def path(request, tmp_path_factory):
    """A bundle in which every kernel that can is shared."""
    build, hop = NETS[request.param]
    least, plan.LEAST_SHARED = plan.LEAST_SHARED, 0
    try:
        out = tmp_path_factory.mktemp("workers") / "m.rnl"
        runnel.compile(build(), out, hop=hop)
    finally:
        plan.LEAST_SHARED = least
    return out


def shared_calls(path) -> int:
    """Calls of a bundle's plan (docs/plan.md) that workers share."""
    data = Bundle(path).read("plan")
    words = struct.unpack(f"<{len(data) // 8}q", data)
    at, found = len(words) - words[6], 0
    while at < len(words):
        kinds = words[at + 10 : at + words[at + 1] : 6] if words[at] == CALL else ()
        found += SHARE in kinds
        at += words[at + 1]
    return found


def recording(program) -> np.ndarray:
    port = program.inputs[0]
    if len(port.shape) == 3:
        return X
    return np.random.default_rng(4).standard_normal((40, *port.shape[1:])).astype(np.float32)


def cut(x: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    return x[(slice(None),) * axis + (slice(start, stop),)]


def played(program, x: np.ndarray) -> bytes:
    axis, stream = program.inputs[0].axis, program.stream()
    pieces = [stream.push(cut(x, axis, i, i + 7)) for i in range(0, x.shape[axis], 7)]
    return b"".join(p.tobytes() for p in [*pieces, stream.flush()])


def test_streams_give_the_same_bits_on_any_number_of_workers(path):
    results = set()
    for workers in COUNTS:
        with runnel.Runtime(workers) as runtime:
            program = runtime.load(path, poison=True)
            results.add(played(program, recording(program)))
    assert len(results) == 1


def test_lanes_give_the_same_bits_on_any_number_of_workers(path, monkeypatch):
    results = set()
    for workers in COUNTS:
        with runnel.Runtime(workers) as runtime:
            program = runnel.load(path, runtime=runtime)
            x, axis, batch = recording(program), program.inputs[0].axis, program.batch(19)
            lanes = [batch.join() for _ in range(19)]
            for lane in lanes:
                batch.push({lane: cut(x, axis, 0, lane % 5)})
            got = batch.push({lane: cut(x, axis, 5, 9 + lane % 3) for lane in lanes})
            results.add(b"".join(got[lane].tobytes() for lane in lanes))
    assert len(results) == 1


def test_several_threads_step_programs_of_one_runtime(path):
    with runnel.Runtime(3) as runtime:
        program = runtime.load(path)
        x = recording(program)
        expected, wrong = played(runnel.load(path), x), []

        def run() -> None:
            for _ in range(3):
                if played(program, x) != expected:
                    wrong.append(threading.get_ident())

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_large_kernels_are_shared_and_small_ones_are_not(tmp_path, path):
    assert shared_calls(path) >= 1
    for channels, shared in ((64, False), (640, True)):
        net, x = stack(6)
        model = net.model(net.conv(net.conv(x, 6, channels, 1), channels, channels, 1))
        runnel.compile(model, tmp_path / "m.rnl")
        assert (shared_calls(tmp_path / "m.rnl") > 0) == shared


def test_a_runtime_says_what_it_cannot_do(tmp_path):
    net, x = stack(6)
    runnel.compile(net.model(net.conv(x, 6, 4, 1)), tmp_path / "m.rnl")
    for count in (0, 33, "2", True):
        with pytest.raises(InputError, match="1 to 32 workers"):
            runnel.Runtime(count)
    with runnel.Runtime(2) as runtime, pytest.raises(InputError, match="native backend"):
        runnel.load(tmp_path / "m.rnl", backend="onnxruntime", runtime=runtime)
    with pytest.raises(RunnelError, match="closed"):
        runtime.load(tmp_path / "m.rnl")
