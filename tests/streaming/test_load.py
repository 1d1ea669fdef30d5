"""Files that are no usable models: one sentence each, never a crash, never a hang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nets import TIME, Net, stack
from onnx import TensorProto, helper, numpy_helper

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.emit import emit
from runnel.errors import InputError

MUTANTS = 300


def sample() -> bytes:
    """A model with a bit of everything."""
    net, x = stack(3)
    h = net.op("Sigmoid", net.conv(x, 3, 3, 3, pads=[1, 1]))
    h = net.op("Slice", h, net.const([0]), net.length(x, 2), net.const([2]))
    s = net.recurrent("GRU", net.op("Transpose", h, perm=[2, 0, 1]), 3, 3)
    y = net.op("Transpose", net.op("Squeeze", s, net.const([1])), perm=[1, 2, 0])
    return net.model(net.op("Add", y, h))


def complaint(source: Path | bytes | onnx.ModelProto) -> str:
    """The one sentence."""
    with pytest.raises(InputError) as caught:
        analyse(load(source))
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert "Traceback" not in text
    return text


def test_files(tmp_path: Path) -> None:
    empty, text, folder = tmp_path / "empty.onnx", tmp_path / "text.onnx", tmp_path / "folder.onnx"
    empty.touch()
    text.write_text("this is not a model\n" * 100)
    folder.mkdir()
    assert "empty.onnx is empty" in complaint(empty)
    assert "text.onnx is not an ONNX file" in complaint(text)
    assert "is a folder" in complaint(folder)
    assert "cannot be read: No such file" in complaint(tmp_path / "missing.onnx")
    locked = tmp_path / "locked.onnx"
    locked.write_bytes(sample())
    assert emit(analyse(load(locked)), None).hop == 1


def test_truncated_at_every_place() -> None:
    """Protobuf may read a prefix as a smaller model; it must then be refused for what it lacks."""
    whole = sample()
    for n in range(0, len(whole), 7):
        try:
            analyse(load(whole[:n]))
        except InputError as error:
            assert "\n" not in str(error)
        else:
            raise AssertionError(f"the first {n} of {len(whole)} bytes make a model")


def test_opsets() -> None:
    def with_opset(version: int, domain: str = "") -> bytes:
        model = onnx.load_from_string(sample())
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid(domain, version))
        return model.SerializeToString()

    assert "opset 6" in complaint(with_opset(6))
    assert "opset 999" in complaint(with_opset(999))
    assert "opset 0" in complaint(with_opset(0))
    assert "does not say which opset" in complaint(with_opset(1, "com.example"))


@pytest.mark.parametrize("opset", [11, 12])
def test_attributes_of_opset_11_and_12(opset: int) -> None:
    """Squeeze, Unsqueeze, Split, ReduceSum and softmax changed at 13."""
    import oracle

    net, x = stack(4, opset=opset)
    wide = net.op("Unsqueeze", x, axes=[1])
    flat = net.op("Squeeze", wide, axes=[1])
    a, b = net.op("Split", flat, outputs=2, axis=1, split=[1, 3])
    total = net.op("ReduceSum", b, axes=[1], keepdims=1)
    t = net.op("Transpose", net.op("Mul", a, total), perm=[0, 2, 1])
    h = net.op("Concat", t, net.op("Transpose", b, perm=[0, 2, 1]), axis=2)
    check = oracle.check(net.model(net.op("Softmax", h, axis=2)), lengths=(1, 2, 5, 9), steps=(None, 4))
    assert check.runs


def test_softmax_of_opset_12_over_several_axes() -> None:
    net = Net(opset=12)
    x = net.input([1, 3, TIME])
    assert "several axes at once" in complaint(net.model(net.op("Softmax", x, axis=1)))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("opset", "scale"), [(7, 2), (8, 3), (9, 1.5), (10, 2), (10, 0.5), (10, 0.25), (10, 2.5)])
def test_resizes_before_opset_11(opset: int, scale: float, mode: str) -> None:
    """They take their values from other places than later ones."""
    import oracle

    net, x = stack(2, opset=opset)
    scales = np.array([1, 1, scale], np.float32)
    given: dict[str, Any] = {"scales": scales.tolist()} if opset < 9 else {}
    inputs = [] if opset < 9 else [net.const(scales)]
    y = net.op("Resize" if opset == 10 else "Upsample", net.conv(x, 2, 2, 3, pads=[1, 1]), *inputs, mode=mode, **given)
    oracle.check(net.model(y), lengths=(2, 5, 10, 17, 20), steps=(None, 12))


def test_resizes_of_opset_10_that_cannot_be_kept() -> None:
    net = Net(opset=10)
    x = net.input([1, 2, TIME, 4])
    said = complaint(net.model(net.op("Resize", x, net.const(np.array([1, 1, 2, 0.5], np.float32)), mode="nearest")))
    assert "below and above 1" in said


@pytest.mark.parametrize("opset", [7, 9, 10])
def test_older_opsets_are_converted(opset: int) -> None:
    import oracle

    net, x = stack(2, opset=opset)
    oracle.check(net.model(net.op("Relu", net.conv(x, 2, 2, 3, pads=[1, 1]))), lengths=(1, 2, 5, 9), steps=(None, 4))


def test_external_data(tmp_path: Path) -> None:
    import oracle

    model = onnx.load_from_string(sample())
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    graph = analyse(load(path))
    assert graph.outputs
    assert "give its path" in complaint(path.read_bytes())
    (tmp_path / "weights.bin").write_bytes(b"short")
    complaint(path)
    (tmp_path / "weights.bin").unlink()
    assert "external weights of model.onnx cannot be read" in complaint(path)
    assert oracle.check(sample(), lengths=(1, 5, 9)).runs


def test_external_data_outside_the_folder(tmp_path: Path) -> None:
    model = onnx.load_from_string(sample())
    inside = tmp_path / "inside"
    inside.mkdir()
    onnx.save_model(model, inside / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (inside / "weights.bin").rename(tmp_path / "weights.bin")
    moved = onnx.load_model(inside / "m.onnx", load_external_data=False)
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    (inside / "m.onnx").write_bytes(moved.SerializeToString())
    complaint(inside / "m.onnx")


def graph_of(nodes: list[onnx.NodeProto], **changes: object) -> onnx.ModelProto:
    parts = {
        "inputs": [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, TIME])],
        "outputs": [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, TIME])],
        "initializer": [],
    }
    parts.update(changes)  # type: ignore[arg-type]
    graph = helper.make_graph(nodes, "bad", parts["inputs"], parts["outputs"], parts["initializer"])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_graphs_that_are_no_graphs() -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    weight = numpy_helper.from_array(np.zeros((3, 3, 1), np.float32), "w")
    for what, model in {
        "a cycle": graph_of([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"]), relu]),
        "an undefined name": graph_of([helper.make_node("Add", ["x", "nothing"], ["y"])]),
        "two nodes of one output": graph_of([relu, helper.make_node("Neg", ["x"], ["y"])]),
        "no node": graph_of([]),
        "no input": graph_of([helper.make_node("Relu", ["w"], ["y"])], inputs=[], initializer=[weight]),
        "an output that nobody makes": graph_of([helper.make_node("Relu", ["x"], ["z"])]),
        "an op that does not exist": graph_of([helper.make_node("Relux", ["x"], ["y"])]),
        "an attribute that does not exist": graph_of([helper.make_node("Relu", ["x"], ["y"], colour=3)]),
        "too few inputs": graph_of([helper.make_node("Conv", ["x"], ["y"])]),
        "a weight of the wrong rank": graph_of(
            [helper.make_node("Conv", ["x", "w"], ["y"])],
            initializer=[numpy_helper.from_array(np.zeros((3,), np.float32), "w")],
        ),
        "a weight of the wrong width": graph_of(
            [helper.make_node("Conv", ["x", "w"], ["y"])],
            initializer=[numpy_helper.from_array(np.zeros((3, 7, 1), np.float32), "w")],
        ),
        "a text input": graph_of([relu], inputs=[helper.make_tensor_value_info("x", TensorProto.STRING, [1, TIME])]),
        "a sequence input": graph_of(
            [helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)],
            inputs=[helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1, TIME])],
        ),
        "a name twice": graph_of([relu], inputs=2 * [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, TIME])]),
    }.items():
        try:
            complaint(model)
        except BaseException as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:200]}") from error


def test_names_that_runnel_uses_itself() -> None:
    """A model may name its tensors like the scalars and states of the portable form."""
    import oracle

    net = Net()
    x = net.input([1, 3, TIME], "runnel.position")
    h = net.conv(x, 3, 3, 5, pads=[2, 2])
    net.nodes[-1].output[0] = "state.window.x"
    y = net.conv("state.window.x", 3, 3, 5, pads=[2, 2])
    assert h
    try:
        assert oracle.check(net.model(y), lengths=(1, 2, 5, 9), steps=(None, 4)).runs
    except InputError as error:
        assert "runnel.position" in str(error)


def test_strange_names() -> None:
    import oracle

    net = Net()
    x = net.input([1, 3, TIME], "ein Gang/ \u00e4\U0001f600:0")
    assert oracle.check(net.model(net.conv(x, 3, 3, 5, pads=[2, 2])), lengths=(1, 5, 9), steps=(None, 4)).runs


@pytest.mark.parametrize("part", range(3))
def test_mutated_bytes(part: int) -> None:
    """Changed bytes make another model or none; only the errors for a user's input may come out."""
    whole = np.frombuffer(sample(), np.uint8)
    rng = np.random.default_rng(part)
    usable = 0
    for _ in range(MUTANTS // 3):
        data = whole.copy()
        for place in rng.integers(0, len(data), rng.integers(1, 5)):
            data[place] = rng.integers(0, 256)
        if rng.random() < 0.3:
            cut = sorted(rng.integers(0, len(data), 2))
            data = np.concatenate([data[: cut[0]], data[cut[1] :]])
        try:
            emit(analyse(load(data.tobytes())), None)
            usable += 1
        except InputError as error:
            assert "\n" not in str(error)
    assert usable < MUTANTS // 3
