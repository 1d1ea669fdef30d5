"""Inputs without time: given once a stream, changed by name, part of its state."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import TIME, Net

import runnel
from runnel.errors import InputError, Refused, StreamError
from runnel.runtime.chain import Chain

RANDOM = np.random.default_rng(3)
EMB = RANDOM.standard_normal((1, 5)).astype(np.float32)
OTHER = RANDOM.standard_normal((1, 5)).astype(np.float32)


def start() -> tuple[Net, str, str]:
    net = Net()
    return net, net.input([1, 3, TIME]), net.input([1, 5], "emb")


def projected(net: Net, emb: str, size: int, suffix: str = "") -> str:
    """A layer of the embedding: [1, size, 1]."""
    y = net.op("Gemm", emb, net.weight(5, size), net.weight(size))
    return net.op("Unsqueeze", net.op("Tanh", y), net.const([2]))


def film(look: int = 1) -> bytes:
    """Scale and shift of channels by the embedding, between convolutions."""
    net, x, emb = start()
    y = net.conv(x, 3, 4, 3, pads=[2 - look, look])
    y = net.op("Add", net.op("Mul", y, projected(net, emb, 4)), projected(net, emb, 4))
    return net.model(net.conv(net.op("Relu", y), 4, 2, 3, pads=[2, 0]))


def expanded(op: str = "Expand") -> bytes:
    """The embedding repeated along time as more channels."""
    net, x, emb = start()
    length = net.length(x, 2)
    one = net.op("Unsqueeze", emb, net.const([2]))
    if op == "Expand":
        e = net.op("Expand", one, net.op("Concat", net.const([1]), net.const([5]), length, axis=0))
    else:
        e = net.op("Tile", one, net.op("Concat", net.const([1]), net.const([1]), length, axis=0))
    y = net.conv(net.op("Concat", x, e, axis=1), 8, 4, 3, pads=[1, 1])
    return net.model(net.op("Relu", y))


def test_film(check):
    check(film(), statics={"emb": EMB})


def test_one_raw_value_for_all_frames(check):
    net = Net()
    x, gain = net.input([1, 3, TIME]), net.input([1], "gain")
    y = net.op("Mul", gain, net.conv(x, 3, 3, 2, pads=[1, 0]))
    check(net.model(net.op("Where", net.op("Greater", gain, net.const(0.5)), y, x)), statics={"gain": EMB[0, :1] + 1})


@pytest.mark.parametrize("op", ["Expand", "Tile"])
def test_expanded_along_time(check, op):
    check(expanded(op), statics={"emb": EMB})


def test_after_a_stride_and_before_a_recurrence(check):
    net, x, emb = start()
    y = net.op("Add", net.conv(x, 3, 4, 4, strides=[2], pads=[2, 1]), projected(net, emb, 4))
    y = net.op("Transpose", y, perm=[2, 0, 1])
    y = net.op("Squeeze", net.recurrent("GRU", y, 4, 3, outputs=2)[0], net.const([1]))
    check(net.model(y), statics={"emb": EMB})


def test_with_a_value_known_at_the_end(check):
    net, x, emb = start()
    y = net.conv(x, 3, 5, 3, pads=[1, 1])
    last = net.op("Squeeze", net.op("Slice", y, net.const([-1]), net.const([2**40]), net.const([2])), net.const([2]))
    score = net.op("ReduceSum", net.op("Mul", net.op("Tanh", last), emb), net.const([1]), keepdims=0)
    check(net.model(score), statics={"emb": EMB})


def test_two_rates_and_a_language(check):
    net = Net()
    audio, video = net.input([1, 2, "a"], "audio"), net.input([1, 3, "v"], "video")
    emb = net.input([1, 5], "emb")
    y = net.op("Add", net.conv(audio, 2, 3, 4, strides=[4]), net.op("Mul", video, projected(net, emb, 3)))
    check(net.model(y), rate={"audio": 100, "video": 25}, statics={"emb": EMB}, lengths=(1, 2, 5, 9))


@pytest.fixture(scope="module", params=["native", "onnxruntime"])
def program(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("statics") / "m.rnl"
    runnel.compile(film(0), path)
    return runnel.load(path, backend=request.param, poison=True)


X = RANDOM.standard_normal((1, 3, 60)).astype(np.float32)


def whole(program, x, **inputs):
    stream = program.stream(inputs=inputs)
    return np.concatenate([stream.push(x), stream.flush()], axis=2)


def test_a_missing_or_unknown_value_is_one_clear_error(program):
    assert [p.name for p in program.statics] == ["emb"] and [p.name for p in program.timed] == ["x"]
    with pytest.raises(StreamError, match=r"the static inputs 'emb' float32\[1, 5\] have no value"):
        program.stream()
    for inputs, why in [
        ({"emb": EMB, "speaker": EMB}, "'speaker' is no static input"), ({"emb": EMB[0]}, "shape"),
        ({"emb": EMB.astype(np.int32)}, "int32"), ({"emb": EMB * np.nan}, "not finite"),
    ]:  # fmt: skip
        with pytest.raises(StreamError, match=why):
            program.stream(inputs=inputs)
    stream = program.stream(inputs={"emb": EMB})
    with pytest.raises(StreamError, match="'x' is no static input"):
        stream.set("x", X)
    with pytest.raises(StreamError, match="does not match"):
        stream.push({"x": X, "emb": EMB})


def test_set_counts_from_the_next_push_on(program):
    """The model's convolution after the conditioning reads 2 frames of the past."""
    before, after = whole(program, X, emb=EMB), whole(program, X, emb=OTHER)
    stream = program.stream(inputs={"emb": EMB})
    first = stream.push(X[..., :20])
    stream.set("emb", OTHER)
    rest = np.concatenate([stream.push(X[..., 20:]), stream.flush()], axis=2)
    assert first.tobytes() == np.ascontiguousarray(before[..., :20]).tobytes()
    assert np.ascontiguousarray(rest[..., 2:]).tobytes() == np.ascontiguousarray(after[..., 22:]).tobytes()
    assert not np.allclose(rest[..., :2], after[..., 20:22])


def test_the_state_brings_it_and_reset_keeps_it(program):
    stream = program.stream(inputs={"emb": EMB})
    stream.push(X[..., :10])
    stream.set("emb", OTHER)
    copies = [program.stream(state=stream.save()), stream.clone()]
    expected = stream.push(X[..., 10:30]).tobytes()
    assert [c.push(X[..., 10:30]).tobytes() for c in copies] == [expected] * 2
    changed = program.stream(state=stream.save(), inputs={"emb": EMB})
    assert changed.push(X[..., 30:]).tobytes() != stream.push(X[..., 30:]).tobytes()
    stream.reset()
    again = np.concatenate([stream.push(X), stream.flush()], axis=2)
    assert again.tobytes() == whole(program, X, emb=OTHER).tobytes()


def test_a_restart_after_nan_keeps_it(program):
    stream = program.stream(inputs={"emb": EMB}, on_nonfinite="reset")
    stream.push(X[..., :10])
    bad, clean = X[..., 10:30].copy(), X[..., 10:30].copy()
    bad[0, 0, 3], clean[0, 0, 3] = np.nan, 0
    assert stream.push(bad).tobytes() == program.stream(inputs={"emb": EMB}).push(clean).tobytes()


def test_lanes_have_values_of_their_own(program):
    batch = program.batch(3)
    one, two = batch.join(inputs={"emb": EMB}), batch.join(inputs={"emb": OTHER})
    with pytest.raises(StreamError, match="have no value"):
        batch.join()
    y = batch.push({one: X, two: X})
    assert y[one].tobytes() == program.stream(inputs={"emb": EMB}).push(X).tobytes()
    assert y[two].tobytes() == program.stream(inputs={"emb": OTHER}).push(X).tobytes()
    batch.reset(one)
    batch.set(one, "emb", OTHER)
    assert batch.push({one: X})[one].tobytes() == y[two].tobytes()


def test_what_is_made_of_it_alone_is_made_once(tmp_path):
    runnel.compile(film(0), tmp_path / "m.rnl")
    program = runnel.load(tmp_path / "m.rnl")
    stream = program.stream(inputs={"emb": EMB})
    stream.push(X[..., :1])
    first = stream.counters["kernel_calls"]
    stream.push(X[..., 1:2])
    second = stream.counters["kernel_calls"] - first
    stream.set("emb", OTHER)
    stream.push(X[..., 2:3])
    assert stream.counters["kernel_calls"] - first - second == first > second


def test_a_model_with_states_names_what_is_static(tmp_path):
    net = Net()
    x, h, emb = net.input([1, 4], "x"), net.input([1, 4], "h"), net.input([1, 5], "emb")
    new = net.op("Tanh", net.op("Add", net.op("Add", x, h), net.op("MatMul", emb, net.weight(5, 4))))
    model = net.model(net.op("Mul", new, x), new)
    info = runnel.compile(model, tmp_path / "m.rnl", state={new: "h"}, static=["emb"])
    assert [(p["name"], p["per_tick"]) for p in info.manifest["inputs"]] == [("x", 1), ("emb", 0)]
    frames = RANDOM.standard_normal((9, 1, 4)).astype(np.float32)
    results = [
        runnel.load(tmp_path / "m.rnl", backend=b).stream(inputs={"emb": EMB}).push(frames)
        for b in ("native", "onnxruntime")
    ]
    np.testing.assert_allclose(*results, atol=1e-6)


def test_a_branch_on_it_is_refused():
    net = Net()
    x, rate = net.input([1, 2, TIME]), net.input([], "sr", "int64")
    branches = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        out = onnx.helper.make_tensor_value_info(f"{name}_y", 1, None)
        branches[name] = onnx.helper.make_graph([onnx.helper.make_node(op, [x], [f"{name}_y"])], name, [], [out])
    model = net.model(net.op("If", net.op("Equal", rate, net.const(16000)), **branches))
    with pytest.raises(Refused, match="chooses between parts of the model by a static input"):
        runnel.inspect(model)
    runnel.inspect(model, bind={"sr": 16000})


def test_a_chain_hands_values_to_the_programs_that_take_them(tmp_path):
    net = Net()
    gained = net.model(net.op("Mul", net.input([1, 2, TIME]), net.input([1], "gain")))
    for name, model in (("film", film(0)), ("gain", gained)):
        runnel.compile(model, tmp_path / f"{name}.rnl")
    one, two = (runnel.load(tmp_path / f"{name}.rnl") for name in ("film", "gain"))
    chain = Chain([one, two])
    assert [p.name for p in chain.statics] == ["emb", "gain"]
    with pytest.raises(StreamError, match="'gain'"):
        chain.stream(inputs={"emb": EMB})
    stream = chain.stream(inputs={"emb": EMB, "gain": 2.0})
    first = stream.push(X)
    np.testing.assert_array_equal(first, 2 * one.stream(inputs={"emb": EMB}).push(X))
    stream.set("gain", 3.0)
    again = chain.stream(state=stream.save())
    assert again.push(X).tobytes() == stream.push(X).tobytes() != first.tobytes()


def test_where_a_constant_is_needed_it_is_refused():
    net, x, emb = start()
    kernel = net.op("Reshape", net.op("Gemm", emb, net.weight(5, 18), net.weight(18)), net.const([2, 3, 3]))
    with pytest.raises(Refused, match="reads a static input where it needs a constant"):
        runnel.inspect(net.model(net.op("Conv", x, kernel)))
    net, x, _ = start()
    rows = net.input([1, 3, 64], "rows")
    with pytest.raises(Refused, match="its own row of a static input of 64 rows"):
        runnel.inspect(net.model(net.op("Add", net.op("Add", x, x), rows)))
    net, x, emb = start()
    with pytest.raises(Refused, match="does not depend on the input frames"):
        runnel.inspect(net.model(net.op("Relu", x), net.op("Tanh", emb)))
    net = Net()
    y = net.op("Add", net.input([1, 3, TIME]), net.input(["k", 3, 1], "open"))
    with pytest.raises(InputError, match="time"):
        runnel.inspect(net.model(y))
