"""GRU, LSTM and RNN: state advances on the stream's own frames only."""

from __future__ import annotations

import oracle
import pytest
from nets import TIME, Net
from onnx import helper
from oracle import Check

from runnel.errors import Refused

OPS = ("GRU", "LSTM", "RNN")


def sequence(size: int = 3) -> tuple[Net, str]:
    net = Net()
    return net, net.input([TIME, 1, size])


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_recurrence(check: Check, op: str, bias: bool, initial: bool) -> None:
    net, x = sequence()
    check(net.model(net.recurrent(op, x, 3, 4, initial=initial, bias=bias)), at_least=12)


@pytest.mark.parametrize("linear", [0, 1])
@pytest.mark.parametrize("initial", [False, True])
def test_gru_behind_look_ahead(check: Check, linear: int, initial: bool) -> None:
    net = Net()
    x = net.input([1, 3, TIME])
    h = net.op("Sigmoid", net.conv(x, 3, 3, 7, pads=[3, 3]))
    s = net.op("Transpose", h, perm=[2, 0, 1])
    y = net.recurrent("GRU", s, 3, 4, initial=initial, linear_before_reset=linear)
    z = net.op("Transpose", net.op("Squeeze", y, net.const([1])), perm=[1, 2, 0])
    check(net.model(net.conv(z, 4, 2, 5, pads=[2, 2])), at_least=12)


@pytest.mark.parametrize("op", OPS)
def test_behind_strides_and_before_upsampling(check: Check, op: str) -> None:
    net = Net()
    x = net.input([1, 2, TIME])
    h = net.op("Sigmoid", net.conv(x, 2, 3, 6, strides=[3], pads=[4, 2]))
    y = net.recurrent(op, net.op("Transpose", h, perm=[2, 0, 1]), 3, 4, initial=True)
    z = net.op("Transpose", net.op("Squeeze", y, net.const([1])), perm=[1, 2, 0])
    check(net.model(net.conv_transpose(z, 4, 1, 6, strides=[3], pads=[1, 2])), at_least=12)


@pytest.mark.parametrize("op", OPS)
def test_stacked_recurrences_with_different_delays(check: Check, op: str) -> None:
    net = Net()
    x = net.input([1, 3, TIME])
    late = net.op("Transpose", net.conv(x, 3, 3, 5, pads=[1, 3]), perm=[2, 0, 1])
    soon = net.op("Transpose", x, perm=[2, 0, 1])
    a = net.op("Squeeze", net.recurrent(op, late, 3, 3, initial=True), net.const([1]))
    b = net.op("Squeeze", net.recurrent(op, soon, 3, 3, initial=True), net.const([1]))
    check(net.model(a, b, net.recurrent("GRU", net.op("Add", a, b), 3, 2)), at_least=12)


@pytest.mark.parametrize("op", OPS)
def test_last_state_comes_at_flush(check: Check, op: str) -> None:
    net, x = sequence()
    y, last = net.recurrent(op, x, 3, 4, outputs=2)
    check(net.model(y, last), at_least=12)


@pytest.mark.parametrize("op", OPS)
def test_last_state_behind_look_ahead(check: Check, op: str) -> None:
    net = Net()
    x = net.input([1, 3, TIME])
    s = net.op("Transpose", net.conv(x, 3, 3, 5, pads=[2, 2]), perm=[2, 0, 1])
    y, last = net.recurrent(op, s, 3, 4, outputs=2, initial=True)
    check(net.model(y, last), at_least=12)


def test_lstm_last_cell_state(check: Check) -> None:
    net, x = sequence()
    y, last, cell = net.recurrent("LSTM", x, 3, 4, outputs=3, initial=True)
    check(net.model(y, last, net.op("Tanh", cell)), at_least=12)


@pytest.mark.parametrize("op", OPS)
def test_only_the_last_state_behind_a_stride_and_a_crop(check: Check, op: str) -> None:
    """As an encoder gives it: nothing reads the sequence."""
    net = Net()
    x = net.input([1, 3, TIME])
    h = net.conv(x, 3, 3, 4, strides=[2], pads=[3, 2])
    h = net.op("Slice", h, net.const([0]), net.const([-2]), net.const([2]))
    s = net.op("Transpose", h, perm=[2, 0, 1])
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[op]
    names = ["", net.name("h"), *([net.name("c")] if op == "LSTM" else [])]
    inputs = [s, net.weight(1, gates * 4, 3), net.weight(1, gates * 4, 4)]
    net.nodes.append(helper.make_node(op, inputs, names, name="encoder", hidden_size=4))
    check(net.model(*names[1:]), at_least=12)


@pytest.mark.parametrize("op", OPS)
def test_behind_a_reflecting_pad_and_a_transposed_convolution(check: Check, op: str) -> None:
    net = Net()
    x = net.input([1, 2, TIME])
    up = net.conv_transpose(net.op("Pad", x, net.const([0, 0, 3, 0, 0, 2]), mode="reflect"), 2, 3, 4, strides=[2])
    y, last = net.recurrent(op, net.op("Transpose", up, perm=[2, 0, 1]), 3, 4, initial=True, outputs=2)
    check(net.model(y, last), at_least=12)


@pytest.mark.parametrize("op", OPS)
def test_sequence_lengths_of_the_whole_stream(check: Check, op: str) -> None:
    """As exporters build them: the length itself, for each sequence of the batch."""
    net, x = sequence()
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[op]
    lengths = net.op("Cast", net.length(x, 0), to=6)
    y = net.op(op, x, net.weight(1, gates * 4, 3), net.weight(1, gates * 4, 4), "", lengths, hidden_size=4)
    check(net.model(y), at_least=12)


def test_peepholes(check: Check) -> None:
    net, x = sequence()
    weights = [net.weight(1, 16, 3), net.weight(1, 16, 4), net.weight(1, 32), "", "", "", net.weight(1, 12)]
    y, last, cell = net.op("LSTM", x, *weights, hidden_size=4, outputs=3)
    check(net.model(y, last, cell), at_least=12)


@pytest.mark.parametrize("op", OPS)
def test_last_states_of_every_frame(check: Check, op: str) -> None:
    """A bidirectional recurrence over the bins of a frame ends in every frame."""
    net = Net()
    x = net.input([5, TIME, 3])
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[op]
    weights = [net.weight(2, gates * 4, 3), net.weight(2, gates * 4, 4), net.weight(2, 2 * gates * 4)]
    y, last = net.op(op, x, *weights, hidden_size=4, direction="bidirectional", outputs=2)
    check(net.model(y, net.op("Tanh", last)), at_least=12)


def test_last_cell_states_of_every_frame(check: Check) -> None:
    net = Net()
    x = net.input([5, TIME, 3])
    y, last, cell = net.recurrent("LSTM", x, 3, 4, outputs=3)
    check(net.model(y, last, cell), at_least=12)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("direction", ["bidirectional", "reverse"])
def test_backwards_is_refused(op: str, direction: str) -> None:
    net, x = sequence()
    both = 2 if direction == "bidirectional" else 1
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[op]
    weights = [net.weight(both, gates * 4, 3), net.weight(both, gates * 4, 4)]
    y = net.op(op, x, *weights, hidden_size=4, direction=direction)
    with pytest.raises(Refused, match=direction):
        oracle.check(net.model(y))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_over_frequency_with_time_as_batch(check: Check, direction: str) -> None:
    """A recurrence over the bins of one frame may run in any direction."""
    net = Net()
    x = net.input([5, TIME, 3])
    both = 2 if direction == "bidirectional" else 1
    y = net.op(
        "GRU",
        x,
        net.weight(both, 12, 3),
        net.weight(both, 12, 4),
        net.weight(both, 24),
        hidden_size=4,
        direction=direction,
    )
    check(net.model(y), at_least=12)


def test_dual_path(check: Check) -> None:
    """One recurrence along frequency inside each frame, one along time for the whole frame."""
    net = Net()
    x = net.input([1, TIME, 5, 3])
    frames = net.op("Squeeze", x, net.const([0]))
    inner = net.recurrent("GRU", net.op("Transpose", frames, perm=[1, 0, 2]), 3, 3)
    inner = net.op("Transpose", net.op("Squeeze", inner, net.const([1])), perm=[1, 0, 2])
    mixed = net.op("Reshape", net.op("Add", inner, frames), net.const([-1, 1, 15]))
    check(net.model(net.recurrent("LSTM", mixed, 15, 4)), at_least=12)


def test_activations(check: Check) -> None:
    net, x = sequence()
    y = net.recurrent("RNN", x, 3, 4, activations=["Relu"], clip=0.7)
    z = net.recurrent("GRU", x, 3, 4, activations=["HardSigmoid", "Softsign"])
    check(net.model(y, z), at_least=12)


def test_lstm_input_forget(check: Check) -> None:
    net, x = sequence()
    check(net.model(net.recurrent("LSTM", x, 3, 4, input_forget=1)), at_least=12)


def test_several_sequences_at_once(check: Check) -> None:
    """A fixed batch of two beside time."""
    net = Net()
    x = net.input([TIME, 2, 3])
    check(net.model(net.recurrent("GRU", x, 3, 4)), at_least=12)


def test_other_sequence_lengths_are_refused() -> None:
    net, x = sequence()
    half = net.op("Cast", net.op("Div", net.length(x, 0), net.const([2])), to=6)
    y = net.op("GRU", x, net.weight(1, 12, 3), net.weight(1, 12, 4), "", half, hidden_size=4)
    with pytest.raises(Refused, match="lengths of its sequences"):
        oracle.check(net.model(y))
