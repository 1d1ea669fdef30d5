"""What does not stream is refused: every op at once, each with its name, a reason and a remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nets import TIME, Net, stack
from onnx import TensorProto, helper

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.registry import RULES, WITHOUT_RULE
from runnel.errors import InputError, Refused


def reasons(model: bytes, **options: Any) -> Refused:
    """The refusal of a model; every reason names a node that the model has."""
    with pytest.raises(Refused) as caught:
        analyse(load(model), **options)
    names = {n.name for n in load(model).proto.graph.node}
    for reason in caught.value.reasons:
        assert reason.node in names, f"{reason.node} is no node of the model"
        assert len(reason.reason) > 10
        assert len(reason.remedy) > 10
        assert reason.op in str(caught.value)
        assert reason.remedy in str(caught.value)
    assert caught.value.exit_code == 2
    return caught.value


def test_all_at_once() -> None:
    net, x = stack(4)
    a = net.op("Softmax", x, axis=-1)
    b = net.op("InstanceNormalization", x, net.weight(4), net.weight(4))
    c = net.op("CumSum", x, net.const(2), reverse=1)
    refused = reasons(net.model(a, b, c))
    assert sorted(r.op for r in refused.reasons) == ["CumSum", "InstanceNormalization", "Softmax"]
    assert "3 ops do not stream" in str(refused)


def test_what_follows_a_refused_op_is_not_blamed() -> None:
    net, x = stack(4)
    h = net.op("Softmax", x, axis=-1)
    h = net.op("Relu", net.conv(h, 4, 4, 3))
    refused = reasons(net.model(net.op("Softmax", h, axis=-1)))
    assert len(refused.reasons) == 1
    assert "1 op does not stream" in str(refused)


@pytest.mark.parametrize("op", ["GRU", "LSTM", "RNN"])
def test_bidirectional(op: str) -> None:
    net = Net()
    x = net.input([TIME, 1, 3])
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[op]
    y = net.op(
        op, x, net.weight(2, gates * 4, 3), net.weight(2, gates * 4, 4), hidden_size=4, direction="bidirectional"
    )
    (reason,) = reasons(net.model(y)).reasons
    assert "bidirectional" in reason.reason
    assert "forward" in reason.remedy


def test_reverse_sequence_speaks_of_bidirectional_recurrences() -> None:
    net = Net()
    x = net.input([TIME, 1, 3])
    lengths = net.op("Reshape", net.op("Gather", net.op("Shape", x), net.const(0), axis=0), net.const([1]))
    y = net.op("ReverseSequence", x, lengths, batch_axis=1, time_axis=0)
    (reason,) = reasons(net.model(y)).reasons
    assert "bidirectional" in reason.reason


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool) -> None:
    net = Net()
    x = net.input([1, TIME, 4])
    q, k, v = (net.op("MatMul", x, net.weight(4, 4)) for _ in range(3))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
    if causal:
        scores = net.op("Add", scores, net.op("Trilu", scores, upper=1))
    (reason, *_) = reasons(net.model(net.op("MatMul", net.op("Softmax", scores, axis=-1), v))).reasons
    assert "every frame with every frame" in reason.reason
    assert "attention" in reason.remedy or reason.modes == ("attention=left:64,right:8",)


def test_positional_table_of_a_fixed_length() -> None:
    net = Net()
    x = net.input([1, TIME, 4])
    (reason,) = reasons(net.model(net.op("Add", x, net.weight(1, 64, 4)))).reasons
    assert reason.op == "Add"
    assert "constant table of 64 rows" in reason.reason


def test_the_length_as_data() -> None:
    """Dividing by the number of frames is a mean over time in disguise."""
    net = Net()
    x = net.input([1, TIME, 4])
    length = net.op("Cast", net.op("Gather", net.op("Shape", x), net.const(1), axis=0), to=1)
    refused = reasons(net.model(net.op("Div", x, length)))
    assert len(refused.reasons) == 1


def test_loop_that_captures_a_time_tensor() -> None:
    net, x = stack(2)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Add", ["state_in", x], ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_in", TensorProto.FLOAT, [1, 2, "n"]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [1, 2, "n"]),
        ],
    )
    start = net.const(np.zeros((1, 2, 1)))
    turns = net.op("Cast", net.op("ReduceMax", net.op("Abs", x), keepdims=0), to=7)
    y = net.op("Loop", turns, net.const(True, "bool"), start, body=body)
    (reason,) = reasons(net.model(y)).reasons
    assert reason.op == "Loop"


def test_if_on_data() -> None:
    net, x = stack(2)
    branches = [
        helper.make_graph(
            [helper.make_node(op, [x], [f"o{i}"])], f"b{i}", [], [helper.make_empty_tensor_value_info(f"o{i}")]
        )
        for i, op in enumerate(("Relu", "Neg"))
    ]
    loud = net.op("Greater", net.op("ReduceMax", x, keepdims=0), net.const(0.5))
    refused = reasons(net.model(net.op("If", loud, then_branch=branches[0], else_branch=branches[1])))
    assert {r.op for r in refused.reasons} == {"If"}


def test_an_op_of_a_foreign_domain() -> None:
    net, x = stack(2)
    node = helper.make_node("BiasDropout", [x], ["y"], name="foreign", domain="com.microsoft")
    net.nodes.append(node)
    graph = helper.make_graph(
        net.nodes, "net", net.inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, TIME])]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    (reason,) = reasons(model).reasons
    assert reason.node == "foreign"


@pytest.mark.parametrize("op", sorted(set(WITHOUT_RULE) - set(RULES)))
def test_known_ops_without_a_rule_say_why(op: str) -> None:
    reason, remedy = WITHOUT_RULE[op]
    assert "no streaming rule" not in reason
    assert remedy


def test_unknown_op_is_refused_before_it_is_run() -> None:
    net, x = stack(2)
    y = net.op("Einsum", x, equation="bct->btc")
    refused = reasons(net.model(y))
    assert refused.reasons[0].op == "Einsum"
    assert "no rule means no guess" in refused.reasons[0].reason


def test_two_candidate_time_axes() -> None:
    net = Net()
    x = net.input([1, "H", "W"])
    model = net.model(net.op("Relu", x))
    with pytest.raises(InputError, match=r"2 candidate time axes: 'H' \(x axis 1\), 'W' \(x axis 2\)") as caught:
        analyse(load(model))
    assert "--time-axis x:1" in str(caught.value)
    with pytest.raises(InputError, match="neither fixed nor time"):
        analyse(load(model), time_axis={"x": 1})


def test_time_axis_choices_that_do_not_fit() -> None:
    net, x = stack(2)
    model = net.model(net.op("Relu", x))
    with pytest.raises(InputError, match="names 'z'"):
        analyse(load(model), time_axis={"z": 0})
    with pytest.raises(InputError, match="outside the input's 3 axes"):
        analyse(load(model), time_axis={"x": 3})
    fixed = Net()
    y = fixed.op("Relu", fixed.input([1, 2, 30]))
    with pytest.raises(InputError, match="window mode"):
        analyse(load(fixed.model(y)))


def test_one_symbol_on_two_axes() -> None:
    net = Net()
    x = net.input([1, TIME, TIME])
    with pytest.raises(InputError, match="two axes of one input"):
        analyse(load(net.model(net.op("Relu", x))))


def test_an_output_that_does_not_depend_on_time() -> None:
    net, x = stack(2)
    y = net.op("Identity", net.weight(3))
    refused = reasons_of_outputs(net.model(net.op("Relu", x), y))
    assert "does not depend on the input frames" in refused.reasons[0].reason


def reasons_of_outputs(model: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        analyse(load(model))
    return caught.value
