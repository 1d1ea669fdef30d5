"""The reference backend's own work: hops, delays, the end, snapshots."""

from __future__ import annotations

import numpy as np
import pytest
from bundles import manifest, write
from plans import SKIP, conv_plan, needs_core, play

from runnel.errors import BundleError, StreamError
from runnel.runtime.backends.onnxruntime import OnnxProgram, evaluate
from runnel.runtime.program import load

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
HOP = 3
UNKNOWN = 1 << 48


def model() -> bytes:
    """y[n] = x[n] + x[n + 1], with 0 after the end: x is held back by one frame."""
    from onnx import TensorProto, helper

    def info(name, dtype, *shape):
        return helper.make_tensor_value_info(name, dtype, shape)

    real, whole = TensorProto.FLOAT, TensorProto.INT64
    constants = {"numbers": np.arange(HOP), "one": np.array([1]), "hop": np.array([HOP]), "more": np.array([HOP + 1]),
                 "zero": np.array([0]), "axis": np.array([1]), "column": np.array([1, HOP, 1])}  # fmt: skip
    nodes = [
        helper.make_node("Add", ["runnel.position", "numbers"], ["at"]),
        helper.make_node("Less", ["at", "runnel.length"], ["real"]),
        helper.make_node("Reshape", ["real", "column"], ["mask"]),
        helper.make_node("Where", ["mask", "x0", "nothing"], ["x.masked"]),
        helper.make_node("Concat", ["state.x", "x.masked"], ["all"], axis=1),
        helper.make_node("Slice", ["all", "zero", "hop", "axis"], ["now"]),
        helper.make_node("Slice", ["all", "one", "more", "axis"], ["next"]),
        helper.make_node("Add", ["now", "next"], ["y0"]),
        helper.make_node("Slice", ["all", "hop", "more", "axis"], ["state.x.next"]),
    ]
    graph = helper.make_graph(
        nodes,
        "delay",
        [info("x0", real, 1, HOP, 4), info("runnel.position", whole), info("runnel.length", whole),
         info("state.x", real, 1, 1, 4)],
        [info("y0", real, 1, HOP, 4), info("state.x.next", real, 1, 1, 4)],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()]
        + [onnx.numpy_helper.from_array(np.zeros((), np.float32), "nothing")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def section(**changes):
    return {
        "hop": HOP, "position": "runnel.position", "length": "runnel.length", "unknown_length": UNKNOWN,
        "inputs": [{"name": "x0", "axis": 1, "shape": [1, HOP, 4]}],
        "states": [{"in": "state.x", "out": "state.x.next", "shape": [1, 1, 4], "dtype": "float32", "fill": 0.0,
                    "initial": None}],
        "outputs": [{"name": "y0", "delay": 1, "frames": HOP, "axis": 1, "length": [[0, 0, 0, 1, 1, 0]]}],
    } | changes  # fmt: skip


@pytest.fixture(scope="module")
def program():
    described = manifest(conv_plan()[0], onnx=section()) | {"program_hash": "cd" * 32}
    return OnnxProgram(described, model(), {"state.x": np.zeros((1, 1, 4), np.float32)}, poison=True)


X = np.random.default_rng(2).standard_normal((1, 20, 4)).astype(np.float32)
EXPECTED = X + np.concatenate([X[:, 1:], X[:, :1] * 0], axis=1)


@pytest.mark.parametrize("chunks", [[20], [1] * 20, [2, 7, 0, 5], [3] * 6])
@pytest.mark.parametrize("frames", [20, 18, 3, 1, 0])
def test_chunked_equals_whole(program, chunks, frames):
    whole = X[:, :frames] + np.concatenate([X[:, 1:frames], X[:, :1] * 0], axis=1)[:, :frames]
    np.testing.assert_array_equal(play(program, X[:, :frames], chunks), whole)


def test_snapshots_clones_and_reset(program):
    stream = program.stream()
    first = stream.push(X[:, :11])
    for other in (stream.clone(), program.stream(state=stream.save()), stream):
        assert other.position == 11
        np.testing.assert_array_equal(np.concatenate([first, other.push(X[:, 11:]), other.flush()], axis=1), EXPECTED)
    with pytest.raises(StreamError, match="ended"):
        stream.push(X)
    stream.reset()
    np.testing.assert_array_equal(np.concatenate([stream.push(X), stream.flush()], axis=1), EXPECTED)
    for state in (b"", stream.save()[:-40], b"RNLONNX\1" + bytes(64)):
        with pytest.raises(StreamError, match="another program"):
            program.stream(state=state)


def test_out_and_policies(program):
    room = np.zeros((1, 30, 4), np.float32)
    got = program.stream().push(X, out=room)
    assert np.shares_memory(got, room)
    np.testing.assert_array_equal(got, EXPECTED[:, :17])
    bad = X.copy()
    bad[0, 3, 1] = np.nan
    stream = program.stream()
    with pytest.raises(StreamError, match=r"x0.*\[0, 3, 1\]"):
        stream.push(bad)
    assert stream.position == 0
    assert np.isfinite(program.stream(on_nonfinite="zero").push(bad)).all()
    reset = program.stream(on_nonfinite="reset")
    reset.push(X)
    reset.push(bad)
    assert reset.position == 20


def test_the_callers_denormals_are_left_alone(program):
    program.stream().push(X)
    assert np.float32(1e-38) * np.float32(0.01) != 0


def test_clock_words():
    words = [[0, 0, 0, 1, 1, 0], [1, 0, 0, 3, 2, -4], [4, 0, 0, 1, 1, 5], [2, 1, 2, 1, 1, 0], [3, 3, 0, 1, 1, 0]]
    for t in range(12):
        assert evaluate(words, t) == max(min(max(0, (3 * t - 4) // 2), 5), t)
    with pytest.raises(BundleError, match="clock op 9"):
        evaluate([[9, 0, 0, 0, 1, 0]], 0)


@pytest.mark.skipif(needs_core, reason=SKIP)
def test_a_bundle_with_only_the_onnx_form(tmp_path):
    from bundles import repack

    path = write(tmp_path / "m.rnl")

    def edit(m, entries):
        for name in ("plan", "kernels/host", "weights/packed"):
            del entries[name], m["entries"][name]
        m.update(weights={}, backends=["onnxruntime"], native_refusal="it has no kernels", onnx=section())
        entries["streaming.onnx"] = model()
        m["entries"]["streaming.onnx"] = {}

    repack(path, edit)
    with pytest.raises(BundleError, match=r"it has no kernels.*onnxruntime"):
        load(path)
    np.testing.assert_array_equal(play(load(path, backend="onnxruntime"), X, [4, 4]), EXPECTED)
