"""``rnn=lookahead:N``: backward recurrences from a stated number of frames ahead, in blocks of as many."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import runners
from nets import TIME, Net
from oracle import Check

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused

OPS = ("GRU", "LSTM", "RNN")


def backwards(op: str, direction: str, initial: bool = False, batch: int = 1, **attrs: object) -> bytes:
    net = Net()
    x = net.input([TIME, batch, 3])
    ways = 2 if direction == "bidirectional" else 1
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[op]
    inputs = [net.weight(ways, gates * 4, 3), net.weight(ways, gates * 4, 4), net.weight(ways, 2 * gates * 4)]
    if initial:
        inputs += ["", *(net.weight(ways, batch, 4) for _ in range(2 if op == "LSTM" else 1))]
    y = net.op(op, x, *inputs, hidden_size=4, direction=direction, **attrs)
    return net.model(net.op("Mul", y, net.const(2.0)))


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
@pytest.mark.parametrize("op", OPS)
def test_recordings_within_two_blocks_are_exact(check: Check, op: str, direction: str) -> None:
    check(backwards(op, direction), modes={"rnn": "lookahead:27"}, at_least=12)


@pytest.mark.parametrize("linear", [0, 1])
@pytest.mark.parametrize("initial", [False, True])
def test_initial_states_and_gates(check: Check, initial: bool, linear: int) -> None:
    model = backwards("GRU", "bidirectional", initial, linear_before_reset=linear)
    check(model, modes={"rnn": "lookahead:30"}, at_least=12)


def test_behind_look_ahead_strides_and_before_a_convolution(check: Check) -> None:
    net = Net()
    x = net.input([1, 2, TIME])
    h = net.op("Sigmoid", net.conv(x, 2, 3, 6, strides=[3], pads=[4, 2]))
    weights = [net.weight(2, 12, 3), net.weight(2, 12, 4), net.weight(2, 24)]
    y = net.op("GRU", net.op("Transpose", h, perm=[2, 0, 1]), *weights, hidden_size=4, direction="bidirectional")
    y = net.op("Reshape", net.op("Transpose", y, perm=[1, 3, 2, 0]), net.const([1, 8, -1]))
    check(net.model(net.conv(y, 8, 2, 3, pads=[1, 1])), modes={"rnn": "lookahead:9"}, at_least=12)


@pytest.mark.parametrize("op", OPS)
def test_states_that_are_named_but_not_read(op: str) -> None:
    """PyTorch names every output of a recurrence."""
    net = Net()
    x = net.input([TIME, 1, 3])
    gates, states = {"GRU": (3, 2), "LSTM": (4, 3), "RNN": (1, 2)}[op]
    weights = [net.weight(2, gates * 4, 3), net.weight(2, gates * 4, 4), net.weight(2, 2 * gates * 4)]
    y = net.op(op, x, *weights, outputs=states, hidden_size=4, direction="bidirectional")
    graph = analyse(load(net.model(net.op("Relu", y[0]))), modes={"rnn": "lookahead:8"})
    assert graph.modes == {"rnn": "lookahead:8"}


def test_two_sequences_at_once(check: Check) -> None:
    check(backwards("LSTM", "bidirectional", batch=2), modes={"rnn": "lookahead:27"}, at_least=12)


def block_by_block(model: bytes, x: np.ndarray, ahead: int) -> np.ndarray:
    """What the mode says: the offline model on the frames of a block and ``ahead`` after them, of which the block is
    kept."""
    offline = oracle.Offline(model)
    parts = []
    for start in range(0, len(x), ahead):
        (y,) = offline({"x": x[start : start + 2 * ahead]}).values()  # type: ignore[union-attr]
        parts.append(y[:ahead])
    return np.concatenate(parts)


@pytest.mark.parametrize("ahead", [1, 5])
@pytest.mark.parametrize("runner", ["reference", "native"])
@pytest.mark.parametrize("op", OPS)
def test_every_block_is_what_the_mode_says(op: str, runner: str, ahead: int) -> None:
    model = backwards(op, "reverse")
    source = oracle.Source(model, 0, None, None, 1.0)
    rng = np.random.default_rng(2)
    for step in (None, 5):
        options = {"modes": {"rnn": f"lookahead:{ahead}"}, **({} if step is None else {"step": step})}
        make = runners.RUNNERS[runner](model, options)
        for turn, length in enumerate((1, 2, 7, 8, 15, 16, 17, 24, 40, 53)):
            x = source(length)
            cuts = oracle.chunking(rng, length, turn % 4)
            (got,) = oracle.streamed(make(), x, cuts, source, dict.fromkeys(oracle.Offline(model).given, 0)).values()
            np.testing.assert_allclose(got, block_by_block(model, x["x"], ahead), atol=2e-6)


def test_last_states_of_a_backward_recurrence_are_refused() -> None:
    net = Net()
    x = net.input([TIME, 1, 3])
    weights = [net.weight(2, 12, 3), net.weight(2, 12, 4)]
    y, last = net.op("GRU", x, *weights, hidden_size=4, direction="bidirectional", outputs=2)
    with pytest.raises(Refused, match="whole future"):
        oracle.check(net.model(y, last), modes={"rnn": "lookahead:8"})


def test_without_the_mode_the_refusal_names_it() -> None:
    with pytest.raises(Refused, match="--mode rnn=lookahead:FRAMES would run it"):
        oracle.check(backwards("GRU", "bidirectional"))
