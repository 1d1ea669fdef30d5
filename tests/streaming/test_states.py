"""Models that bring their own state, and what a caller fixes before the rewrite."""

from __future__ import annotations

import numpy as np
import pytest
from nets import TIME, Net
from oracle import TOLERANCE, Offline, deviation
from reference_runner import ReferenceRunner

from runnel.compiler.graph.bind import bind, set_shapes
from runnel.compiler.graph.model import Graph, load
from runnel.compiler.graph.states import find_states
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.emit import emit
from runnel.errors import InputError


def ports(pairs: dict[str, tuple[str, list[int | str]]], shape: list[int | str] | None = None) -> Graph:
    """A model with input x, output y, and outputs named as the keys: {output: (input, shape)}."""
    net = Net()
    x = net.input(shape or [1, 4])
    outputs = []
    for out, (inp, dims) in pairs.items():
        net.input(dims, inp)
        net.nodes.append(_renamed(net, inp, out))
        outputs.append(out)
    return load(net.model(net.op("Neg", x), *outputs))


def _renamed(net: Net, inp: str, out: str):  # type: ignore[no-untyped-def]  # an ONNX node
    from onnx import helper

    return helper.make_node("Neg", [inp], [out], name=net.name("neg"))


@pytest.mark.parametrize(
    ("out", "inp"),
    [
        ("hn", "h0"), ("cn", "c0"), ("h_out", "h"), ("h_out", "h_in"), ("stateN", "state"), ("state_out", "state_in"),
        ("conv_cache_out", "conv_cache"), ("cache_out_0", "cache_in_0"), ("new_hidden", "hidden"), ("h0_out", "h0"),
        ("h3_out", "h3"), ("present_cache", "past_cache"), ("next_state", "prev_state"), ("buffer_out", "buffer"),
        ("gru_hn", "gru_h0"), ("hidden_state_updated", "hidden_state"),
    ],
)  # fmt: skip
def test_pairs_found_by_name(out: str, inp: str) -> None:
    assert find_states(ports({out: (inp, [1, 2, 8])})) == {out: inp}


def test_several_pairs_of_one_shape() -> None:
    names = {f"h{i}_out": (f"h{i}", [1, 1, 8]) for i in range(4)}
    assert find_states(ports(names)) == {f"h{i}_out": f"h{i}" for i in range(4)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("out", "inp", "shape"),
    [
        ("mask_out", "mask", [1, 8]),  # no word of state
        ("audio_out", "audio", [1, 512]),
        ("h_out", "c", [1, 8]),  # another state
        ("cache_out", "cache", [1, 8, "frames"]),  # grows with time
        ("probability", "state", [1, 8]),
    ],
)
def test_what_is_not_a_state(out: str, inp: str, shape: list[int | str]) -> None:
    assert find_states(ports({out: (inp, shape)})) == {}


def test_batch_may_be_symbolic_and_shapes_must_agree() -> None:
    assert find_states(ports({"h_out": ("h", [1, "batch", 8])})) == {"h_out": "h"}
    net = Net()
    net.input([1, 4])
    net.input([1, 8], "state")
    y = net.op("Neg", "x")
    net.nodes.append(_renamed(net, y, "state_out"))
    assert find_states(load(net.model(y, "state_out"))) == {}


def test_a_model_of_states_alone_has_none() -> None:
    net = Net()
    net.input([1, 8], "state")
    net.nodes.append(_renamed(net, "state", "state_out"))
    assert find_states(load(net.model("state_out"))) == {}


def stepping() -> bytes:
    """An exponential mean and a recurrence, one frame a call."""
    net = Net()
    x, mean, h = net.input([1, 1, 3]), net.input([1, 1, 3], "mean_state"), net.input([1, 1, 4], "h0")
    kept = net.op("Mul", mean, net.const(0.9))
    from onnx import helper

    net.nodes.append(helper.make_node("Add", [kept, net.op("Mul", x, net.const(0.1))], ["mean_state_out"], name="add"))
    weights = [net.weight(1, 12, 3), net.weight(1, 12, 4)]
    net.nodes.append(
        helper.make_node("GRU", ["mean_state_out", *weights, "", "", h], ["y", "hn"], name="gru", hidden_size=4)
    )
    return net.model("y", "mean_state_out", "hn")


@pytest.mark.parametrize("given", [False, True])
def test_states_go_round(given: bool) -> None:
    model = stepping()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 1, 1, 3)).astype(np.float32)
    initial = {"h0": rng.standard_normal((1, 1, 4)).astype(np.float32)} if given else {}
    graph = load(model)
    pairs = find_states(graph)
    assert pairs == {"mean_state_out": "mean_state", "hn": "h0"}
    runner = ReferenceRunner(emit(analyse(graph, states=pairs, initial=initial)))
    parts = [runner.push({"x": x[:4]}), runner.push({"x": x[4:]}), runner.flush()]
    got = np.concatenate([p["y"] for p in parts])
    offline = Offline(model)
    state = {"mean_state": np.zeros((1, 1, 3), np.float32), "h0": initial.get("h0", np.zeros((1, 1, 4), np.float32))}
    for frame, streamed in zip(x, got, strict=True):
        wanted = offline({"x": frame, **state})
        assert wanted is not None
        state = {inp: wanted[out] for out, inp in pairs.items()}
        assert deviation(streamed, wanted["y"]) < TOLERANCE


def test_an_initial_state_of_another_shape() -> None:
    with pytest.raises(InputError, match="initial value of 'h0'"):
        analyse(load(stepping()), states={"mean_state_out": "mean_state", "hn": "h0"}, initial={"h0": np.zeros((1, 4))})


def bindable() -> bytes:
    """x [batch, 1, T] scaled by an input, through the branch that another input picks."""
    from onnx import helper

    net = Net()
    x, gain, rate = net.input(["batch", 1, TIME]), net.input([1], "gain"), net.input([], "sr", "int64")
    y = net.op("Mul", x, gain)
    branches = []
    for i, op in enumerate(("Tanh", "Exp")):
        node = helper.make_node(op, [y], [f"inner{i}"])
        branches.append(helper.make_graph([node], f"b{i}", [], [helper.make_empty_tensor_value_info(f"inner{i}")]))
    flag = net.op("Equal", rate, net.const(16000))
    return net.model(net.op("If", flag, then_branch=branches[0], else_branch=branches[1]))


@pytest.mark.parametrize(("rate", "function"), [(16000, np.tanh), (8000, np.exp)])
def test_bound_inputs_pick_branches(rate: int, function: np.ufunc) -> None:
    graph = load(bindable())
    bind(graph, {"sr": np.array(rate), "gain": np.array([2.0])})
    runner = ReferenceRunner(emit(analyse(graph)))
    x = np.random.default_rng(0).standard_normal((1, 1, 7)).astype(np.float32)
    parts = [runner.push({"x": x}), runner.flush()]
    got = np.concatenate([next(iter(p.values())) for p in parts], 2)
    assert deviation(got, function(2 * x)) < TOLERANCE


def test_an_input_without_time_that_is_not_bound_is_static() -> None:
    net = Net()
    x, gain = net.input([1, 2, TIME]), net.input([1], "gain")
    graph = analyse(load(net.model(net.op("Mul", x, gain))))
    assert [s.name for s in graph.inputs] == ["x"] and [s.name for s in graph.statics] == ["gain"]


def test_bad_bindings_and_shapes() -> None:
    for values, reason in (
        ({"rate": np.array(1)}, "no input 'rate'"),
        ({"gain": np.zeros(3)}, "takes the shape"),
        ({"gain": np.zeros((1, 1))}, "takes the shape"),
        ({"x": np.zeros((1, 1, 4)), "gain": np.zeros(1), "sr": np.array(1)}, "nothing to stream"),
    ):
        with pytest.raises(InputError, match=reason):
            bind(load(bindable()), values)
    for shapes, reason in (
        ({"y": [1]}, "no input 'y'"), ({"x": [1, 1]}, "3 axes"), ({"x": [1, 2, 5]}, "takes the shape"),
        ({"x": [1, 1, 0]}, "takes the shape"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=reason):
            set_shapes(load(bindable()), shapes)


def test_a_symbol_is_fixed_wherever_it_stands() -> None:
    graph = ports({"h_out": ("h", [1, "B", 8])}, shape=["B", 4])
    set_shapes(graph, {"x": [3, 4]})
    assert [p.shape for p in graph.inputs] == [(3, 4), (1, 3, 8)]
    with pytest.raises(InputError, match="cannot be both"):
        set_shapes(ports({"h_out": ("h", [1, "B", 8])}, shape=["B", 4]), {"x": [3, 4], "h": [1, 2, 8]})
