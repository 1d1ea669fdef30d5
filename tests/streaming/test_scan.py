"""Scan and Loop over time: states advance on the stream's own frames only."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from nets import TIME, Net, Turn, stack
from onnx import TensorProto, helper
from oracle import Check

from runnel.errors import Refused

FLOAT = TensorProto.FLOAT


def sru(net: Net, turn: Turn, size: int = 3) -> tuple[str, str]:
    """c' = f·c + (1 − f)·W x, y = tanh(c'): a simple recurrent unit. Its weights are captured."""
    c, x = turn.input("c", 1, size), turn.input("frame", 1, size)
    f = turn.op("Sigmoid", turn.op("Add", turn.op("MatMul", x, net.weight(size, size)), net.weight(size)))
    kept = turn.op("Mul", f, turn.op("Sub", c, turn.op("MatMul", x, net.weight(size, size))))
    after = turn.op("Add", turn.op("MatMul", x, net.weight(size, size)), kept)
    return after, turn.op("Tanh", after)


def test_simple_recurrent_unit(check: Check) -> None:
    net, turn = Net(), Turn()
    x = net.input([TIME, 1, 3])
    body = turn.graph(*sru(net, turn))
    last, y = net.op("Scan", net.weight(1, 3), x, body=body, num_scan_inputs=1, outputs=2)
    check(net.model(y, net.op("Mul", last, net.const(2.0))), at_least=12)


def test_recurrent_product(check: Check) -> None:
    """h' = tanh(W x + R h): a product inside the loop."""
    net, turn = Net(), Turn()
    x = net.input([TIME, 1, 3])
    h, frame = turn.input("h", 1, 4), turn.input("frame", 1, 3)
    total = turn.op("Add", turn.op("MatMul", frame, net.weight(3, 4)), turn.op("MatMul", h, net.weight(4, 4)))
    after = turn.op("Tanh", total)
    body = turn.graph(after, turn.op("Relu", after), turn.op("Softmax", after, axis=-1))
    _, y, z = net.op("Scan", net.const(np.zeros((1, 4))), x, body=body, num_scan_inputs=1, outputs=3)
    check(net.model(y, z), at_least=12)


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_behind_look_ahead_strides_and_before_upsampling(check: Check, initial: float) -> None:
    net, turn = Net(), Turn()
    x = net.input([1, 2, TIME])
    h = net.op("Sigmoid", net.conv(x, 2, 3, 6, strides=[3], pads=[4, 2]))
    c, frame = turn.input("c", 1, 3), turn.input("frame", 1, 3)
    after = turn.op("Add", turn.op("Mul", c, net.const(0.7)), turn.op("Mul", frame, net.weight(3)))
    body = turn.graph(after, turn.op("Tanh", after))
    _, y = net.op(
        "Scan", net.const(np.full((1, 3), initial)), h, body=body, num_scan_inputs=1, scan_input_axes=[2],
        scan_output_axes=[2], outputs=2,
    )  # fmt: skip
    check(net.model(net.conv_transpose(y, 3, 1, 6, strides=[3], pads=[1, 2])), at_least=12)


def test_several_inputs_states_and_outputs_with_different_delays(check: Check) -> None:
    """One state is a shift register of the other; the scan inputs are late by different amounts."""
    net, turn = Net(), Turn()
    x = net.input([1, 3, TIME])
    late = net.op("Transpose", net.conv(x, 3, 3, 5, pads=[1, 3]), perm=[2, 0, 1])
    soon = net.op("Transpose", x, perm=[2, 0, 1])
    a, b = turn.input("a", 1, 3), turn.input("b", 1, 3)
    p, q = turn.input("p", 1, 3), turn.input("q", 1, 3)
    after = turn.op("Tanh", turn.op("Add", turn.op("Sub", p, b), turn.op("Mul", q, a)))
    body = turn.graph(after, turn.op("Identity", a), turn.op("Add", after, b), turn.op("Concat", p, a, axis=1))
    ends = [net.weight(1, 3), net.weight(1, 3)]
    last, old, y, z = net.op("Scan", *ends, late, soon, body=body, num_scan_inputs=2, outputs=4)
    check(net.model(y, z, net.op("Relu", last), net.op("Neg", old)), at_least=12)


def test_last_state_of_a_cropped_stream(check: Check) -> None:
    net, turn = Net(), Turn()
    x = net.input([TIME, 1, 3])
    cut = net.op("Slice", x, net.const([1]), net.const([-3]), net.const([0]))
    body = turn.graph(*sru(net, turn))
    last, y = net.op("Scan", net.weight(1, 3), cut, body=body, num_scan_inputs=1, outputs=2)
    check(net.model(y, net.op("Mul", last, net.const(2.0))), at_least=12)


def test_two_scans_in_a_row(check: Check) -> None:
    net = Net()
    x = net.input([TIME, 1, 3])
    for _ in range(2):
        turn = Turn()
        body = turn.graph(*sru(net, turn))
        _, x = net.op("Scan", net.weight(1, 3), x, body=body, num_scan_inputs=1, outputs=2)
    check(net.model(net.recurrent("GRU", x, 3, 2)), at_least=12)


def test_a_counter_and_a_branch_that_is_constant(check: Check) -> None:
    net, turn = Net(), Turn()
    x = net.input([TIME, 2])
    n, frame = turn.input("n"), turn.input("frame", 2)
    branches = {}
    for name, op in (("then_branch", "Tanh"), ("else_branch", "Relu")):
        out = helper.make_tensor_value_info(f"{name}_y", FLOAT, None)
        branches[name] = helper.make_graph([helper.make_node(op, [frame], [f"{name}_y"])], name, [], [out])
    chosen = turn.op("If", net.const(np.array(True)), **branches)
    after = turn.op("Add", n, net.const(1.0))
    body = turn.graph(after, turn.op("Div", chosen, after))
    _, y = net.op("Scan", net.const(np.float32(0)), x, body=body, num_scan_inputs=1, outputs=2)
    check(net.model(y), at_least=12)


def looped(net: Net, x: str, turn: Turn, states: list[str], *outputs: str, trips: str = "") -> Any:
    """A Loop over the frames of x; outputs[0] is the condition."""
    body = turn.graph(*outputs, kinds={outputs[0]: TensorProto.BOOL})
    trips = trips or net.op("Squeeze", net.length(x, 0))
    return net.op("Loop", trips, net.const(np.array(True)), *states, body=body, outputs=len(outputs) - 1)


def loop_turn(*states: tuple[str, int]) -> Turn:
    turn = Turn()
    turn.input("i", kind=TensorProto.INT64)
    turn.input("go", kind=TensorProto.BOOL)
    for name, size in states:
        turn.input(name, 1, size)
    return turn


@pytest.mark.parametrize("flat", [True, False])
def test_loop_over_frames(check: Check, flat: bool) -> None:
    """As TorchScript exports ``for t in range(len(x)): h = cell(x[t], h)``."""
    net, turn = Net(), loop_turn(("h", 4))
    x = net.op("Mul", net.input([TIME, 1, 3]), net.const(0.5))
    at = "i" if flat else turn.op("Unsqueeze", "i", net.const([0]))
    frame = turn.op("Gather", x, at, axis=0)
    frame = frame if flat else turn.op("Squeeze", frame, net.const([0]))
    total = turn.op("Add", turn.op("MatMul", frame, net.weight(3, 4)), turn.op("MatMul", "h", net.weight(4, 4)))
    after = turn.op("Tanh", total)
    last, y = looped(net, x, turn, [net.weight(1, 4)], turn.op("Identity", "go"), after, turn.op("Relu", after))
    check(net.model(y, net.op("Neg", last)), at_least=12)


@pytest.mark.parametrize("new_axis", [0, 1])
def test_loop_that_gathers_its_frames_in_a_list(check: Check, new_axis: int) -> None:
    """As TorchScript exports ``outs.append(h)`` and ``torch.stack(outs, 1)`` or ``torch.cat(outs, 0)``."""
    net, turn = Net(), loop_turn()
    turn.inputs.append(helper.make_tensor_sequence_value_info("outs", FLOAT, None))
    turn.input("h", 1, 4)
    x = net.op("Mul", net.input([TIME, 1, 3]), net.const(0.5))
    frame = turn.op("Gather", x, "i", axis=0)
    total = turn.op("Add", turn.op("MatMul", frame, net.weight(3, 4)), turn.op("MatMul", "h", net.weight(4, 4)))
    after = turn.op("Tanh", total)
    outs, going = turn.op("SequenceInsert", "outs", after), turn.op("Identity", "go")
    body = turn.graph(going, outs, after, kinds={going: TensorProto.BOOL})
    body.output[1].CopyFrom(helper.make_tensor_sequence_value_info(outs, FLOAT, None))
    trips = net.op("Squeeze", net.length(x, 0))
    lists, last = net.op(
        "Loop", trips, net.const(np.array(True)), net.op("SequenceEmpty"), net.weight(1, 4), body=body, outputs=2
    )
    y = net.op("ConcatFromSequence", lists, axis=new_axis, new_axis=new_axis)
    check(net.model(y, net.op("Neg", last)), at_least=12)


def test_a_loop_of_known_length_is_written_out(check: Check) -> None:
    """Three turns over the whole recording, each with its own row of a table, their results stacked."""
    net, turn = Net(), Turn()
    turn.input("i", kind=TensorProto.INT64)
    turn.input("go", kind=TensorProto.BOOL)
    x = net.input([1, 4, TIME])
    turn.inputs.append(helper.make_tensor_value_info("h", FLOAT, [1, 4, None]))
    row = turn.op("Unsqueeze", turn.op("Gather", net.weight(3, 4), "i", axis=0), net.const([0, 2]))
    after = turn.op("Conv", turn.op("Mul", "h", row), net.weight(4, 4, 3), pads=[1, 1])
    going = turn.op("Identity", "go")
    body = turn.graph(going, after, turn.op("Tanh", after), kinds={going: TensorProto.BOOL})
    h, all_of_them = net.op("Loop", net.const(3), net.const(np.array(True)), x, body=body, outputs=2)
    check(net.model(h, net.op("Squeeze", all_of_them, net.const([1]))), at_least=12)


def test_loop_that_counts(check: Check) -> None:
    """The number of the turn as a value: a running mean."""
    net, turn = Net(), loop_turn(("m", 3))
    x = net.op("Mul", net.input([TIME, 1, 3]), net.const(0.5))
    n = turn.op("Add", turn.op("Cast", "i", to=FLOAT), net.const(1.0))
    after = turn.op("Add", "m", turn.op("Div", turn.op("Sub", turn.op("Gather", x, "i", axis=0), "m"), n))
    _, y = looped(net, x, turn, [net.const(np.zeros((1, 3)))], turn.op("Identity", "go"), after, turn.op("Exp", after))
    check(net.model(y), at_least=12)


@pytest.mark.parametrize("op", ["Scan", "Loop"])
def test_on_windows(check: Check, op: str) -> None:
    """In window mode a loop starts again in every window."""
    net = Net()
    x = net.op("Mul", net.input([TIME, 1, 3]), net.const(0.5))
    if op == "Scan":
        turn = Turn()
        _, y = net.op("Scan", net.weight(1, 3), x, body=turn.graph(*sru(net, turn)), num_scan_inputs=1, outputs=2)
    else:
        turn = loop_turn(("h", 3))
        after = turn.op("Add", "h", turn.op("Gather", x, "i", axis=0))
        _, y = looped(net, x, turn, [net.weight(1, 3)], turn.op("Identity", "go"), after, turn.op("Tanh", after))
    check(net.model(y), window=9, hop=2)


# Refused ------------------------------------------------------------------------------------------------------------


def test_backwards_is_refused() -> None:
    net, turn = Net(), Turn()
    x = net.input([TIME, 1, 3])
    body = turn.graph(*sru(net, turn))
    _, y = net.op("Scan", net.weight(1, 3), x, body=body, num_scan_inputs=1, scan_input_directions=[1], outputs=2)
    with pytest.raises(Refused, match="backwards through time"):
        oracle.check(net.model(y))


def test_another_axis_is_refused() -> None:
    net, turn = Net(), Turn()
    x = net.input([5, TIME, 3])
    c, frame = turn.input("c", 1, 3), turn.inputs.append(helper.make_tensor_value_info("frame", FLOAT, ["n", 3]))
    after = turn.op("Add", c, turn.op("ReduceMean", "frame", axes=[0], keepdims=1))
    assert frame is None
    _, y = net.op(
        "Scan",
        net.weight(1, 3),
        x,
        body=turn.graph(after, turn.op("Add", after, "frame")),
        num_scan_inputs=1,
        outputs=2,
    )
    with pytest.raises(Refused, match="another axis than time"):
        oracle.check(net.model(y))


def test_a_stream_around_the_loop_is_refused() -> None:
    net, turn = Net(), Turn()
    x = net.input([TIME, 1, 3])
    y = net.op("Mul", x, net.const(2.0))
    c, frame = turn.input("c", 1, 3), turn.input("frame", 1, 3)
    after = turn.op("Add", c, turn.op("ReduceMax", turn.op("Add", frame, y), axes=[0], keepdims=0))
    _, z = net.op("Scan", net.weight(1, 3), x, body=turn.graph(after, turn.op("Tanh", after)), num_scan_inputs=1,
                  outputs=2)  # fmt: skip
    with pytest.raises(Refused, match="reads a tensor around it"):
        oracle.check(net.model(z))


def test_a_state_from_the_input_is_refused() -> None:
    net, turn = Net(), Turn()
    x = net.input([TIME, 1, 3])
    first = net.op("Squeeze", net.op("Slice", x, net.const([-1]), net.const([1 << 60]), net.const([0])), net.const([0]))
    _, y = net.op("Scan", first, x, body=turn.graph(*sru(net, turn)), num_scan_inputs=1, outputs=2)
    with pytest.raises(Refused, match="known only at the end"):
        oracle.check(net.model(y))


def test_random_numbers_are_refused() -> None:
    net, turn = Net(), Turn()
    x = net.input([TIME, 1, 3])
    c, frame = turn.input("c", 1, 3), turn.input("frame", 1, 3)
    after = turn.op("Add", turn.op("RandomNormalLike", c), frame)
    body = turn.graph(after, turn.op("Add", after, c))
    _, y = net.op("Scan", net.weight(1, 3), x, body=body, num_scan_inputs=1, outputs=2)
    with pytest.raises(Refused, match="random numbers"):
        oracle.check(net.model(y))


def test_a_loop_that_data_ends_is_refused() -> None:
    net, turn = Net(), loop_turn(("h", 3))
    x = net.op("Mul", net.input([TIME, 1, 3]), net.const(0.5))
    after = turn.op("Add", "h", turn.op("Gather", x, "i", axis=0))
    going = turn.op("Squeeze", turn.op("Less", turn.op("ReduceMax", after, keepdims=0), net.const(5.0)))
    _, y = looped(net, x, turn, [net.weight(1, 3)], going, after, turn.op("Tanh", after))
    with pytest.raises(Refused, match="data ends"):
        oracle.check(net.model(y))


def test_a_loop_over_other_frames_is_refused() -> None:
    net, turn = Net(), loop_turn(("h", 3))
    x = net.op("Mul", net.input([TIME, 1, 3]), net.const(0.5))
    last = turn.op("Sub", turn.op("Gather", turn.op("Shape", x), net.const(0)), turn.op("Add", "i", net.const(1)))
    after = turn.op("Add", "h", turn.op("Gather", x, last, axis=0))
    _, y = looped(net, x, turn, [net.weight(1, 3)], turn.op("Identity", "go"), after, turn.op("Tanh", after))
    with pytest.raises(Refused, match="other frames than that of its turn"):
        oracle.check(net.model(y))


def test_half_as_many_turns_are_refused() -> None:
    net, turn = Net(), loop_turn(("h", 3))
    x = net.op("Mul", net.input([TIME, 1, 3]), net.const(0.5))
    after = turn.op("Add", "h", turn.op("Gather", x, "i", axis=0))
    half = net.op("Squeeze", net.op("Div", net.length(x, 0), net.const([2])))
    _, y = looped(
        net, x, turn, [net.weight(1, 3)], turn.op("Identity", "go"), after, turn.op("Tanh", after), trips=half
    )
    with pytest.raises(Refused, match="other frames than that of its turn"):
        oracle.check(net.model(y))


def test_scan_of_one_channel_stack(check: Check) -> None:
    """A scan in the middle of convolutions: time last, states of one frame."""
    net, x = stack(4)
    turn = Turn()
    c, frame = turn.input("c", 1, 4), turn.input("frame", 1, 4)
    after = turn.op("Max", frame, turn.op("Mul", c, net.const(0.9)))
    body = turn.graph(after, turn.op("Sub", frame, after))
    h = net.conv(x, 4, 4, 3, pads=[1, 1])
    _, y = net.op("Scan", net.const(np.zeros((1, 4))), h, body=body, num_scan_inputs=1, scan_input_axes=[2],
                  scan_output_axes=[-1], outputs=2)  # fmt: skip
    check(net.model(net.conv(y, 4, 2, 3, pads=[0, 2])), at_least=12)
