"""Alters ONNX models at random and inspects them. Prints a line before each; dies, or says WRONG where one is not
refused in words. ``python fuzz_models.py FIRST COUNT [SECONDS]`` runs mutants FIRST … FIRST + COUNT - 1.
"""

from __future__ import annotations

import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "streaming"))

import numpy as np
import onnx
from nets import Net
from onnx import TensorProto, helper, numpy_helper

import runnel
from runnel.errors import InputError

MEMORY = 8 << 30
LONGEST = 30  # seconds that one mutant may take


def _seeds() -> list[bytes]:
    """Valid models with most of what a loader reads: weights, attributes, shape arithmetic, subgraphs, states."""
    net = Net(1)
    x = net.input([1, 3, "T"])
    h = net.op("Relu", net.conv(x, 3, 4, 3, pads=[2, 0], strides=[2]))
    h = net.conv_transpose(h, 4, 3, 4, strides=[2], pads=[1, 1])
    conv = net.model(h)
    net = Net(2)
    x = net.input(["batch", "T", 4])
    y = net.recurrent("GRU", net.op("Transpose", x, perm=[1, 0, 2]), 4, 5, initial=True)
    y = net.op("Transpose", net.op("Squeeze", y, net.const([1])), perm=[1, 0, 2])
    y = net.op("MatMul", y, net.weight(5, 2))
    end = net.op("Sub", net.length(y, 1), net.const([2]))
    recurrent = net.model(net.op("Slice", y, net.const([0]), end, net.const([1])))
    net = Net(3)
    x = net.input([1, 2, "T"])
    h = net.op("Pad", x, net.const([0, 0, 2, 0, 0, 1]), mode="reflect")
    h = net.op("MaxPool", h, kernel_shape=[3], strides=[1])
    h = net.op("LayerNormalization", net.op("Transpose", h, perm=[0, 2, 1]), net.weight(2), net.weight(2), axis=-1)
    shape = net.op("Concat", net.const([1]), net.length(h, 1), net.const([1, 2]), axis=0)
    pooled = net.model(net.op("Softmax", net.op("Reshape", h, shape), axis=-1))
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["inner"])], "branch", [], [
        helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)])  # fmt: skip
    other = helper.make_graph([helper.make_node("Abs", ["x"], ["other"])], "branch", [], [
        helper.make_tensor_value_info("other", TensorProto.FLOAT, None)])  # fmt: skip
    nodes = [helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=other)]
    graph = helper.make_graph(
        nodes, "branches", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "T"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "T"])],
        [numpy_helper.from_array(np.array(True), "flag")],
    )  # fmt: skip
    branches = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return [conv, recurrent, pooled, bytes(branches.SerializeToString())]


ODD = (0, 1, -1, 2, 3, 7, 64, 127, 1 << 20, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63))


class Mutator:
    """Alters one model in one to three places."""

    def __init__(self, seed: int, models: list[bytes]) -> None:
        self.rng = np.random.default_rng(seed)
        self.data = models[seed % len(models)]

    def pick(self, values: Any) -> Any:
        return values[int(self.rng.integers(0, len(values)))]

    def __call__(self) -> bytes:
        if self.rng.random() < 0.2:
            return self.bytes_changed()
        model = onnx.load_from_string(self.data)
        ways: list[Callable[[onnx.ModelProto], None]] = [
            self.attribute, self.rewire, self.drop_node, self.weight, self.dimension, self.change_type, self.change_op,
            self.port, self.duplicate, self.constant, self.outside, self.opset,
        ]  # fmt: skip
        for _ in range(int(self.rng.integers(1, 4))):
            try:
                self.pick(ways)(model)
            except Exception:  # whatever onnx raises for a model that is broken already
                continue
        return bytes(model.SerializeToString())

    def bytes_changed(self) -> bytes:
        data = bytearray(self.data)
        for _ in range(int(self.rng.integers(1, 9))):
            at = int(self.rng.integers(0, len(data)))
            how = int(self.rng.integers(0, 3))
            if how == 0:
                data[at] ^= 1 << int(self.rng.integers(0, 8))
            elif how == 1:
                del data[at : at + int(self.rng.integers(1, 9))]
            else:
                data[at:at] = self.rng.bytes(int(self.rng.integers(1, 9)))
        return bytes(data)

    def attribute(self, model: onnx.ModelProto) -> None:
        a = self.pick([a for n in model.graph.node for a in n.attribute])
        how = int(self.rng.integers(0, 4))
        if a.ints and how:
            a.ints[int(self.rng.integers(0, len(a.ints)))] = self.pick(ODD)
        elif how == 1:
            a.name = self.pick(["axis", "perm", "pads", "", "kernel_shape"])
        elif how == 2:
            a.type = self.pick([1, 2, 3, 4, 6, 7])
        else:
            a.i = self.pick(ODD)
            del a.ints[self.pick([0, 1]) :]

    def rewire(self, model: onnx.ModelProto) -> None:
        names = [o for n in model.graph.node for o in (*n.output, *n.input)] + ["", "nowhere"]
        node = self.pick(model.graph.node)
        side = node.input if self.rng.random() < 0.7 else node.output
        side[int(self.rng.integers(0, len(side)))] = self.pick(names)

    def drop_node(self, model: onnx.ModelProto) -> None:
        del model.graph.node[int(self.rng.integers(0, len(model.graph.node)))]

    def weight(self, model: onnx.ModelProto) -> None:
        t = self.pick(model.graph.initializer)
        how = int(self.rng.integers(0, 4))
        if how == 0:
            t.raw_data = t.raw_data[: int(self.rng.integers(0, len(t.raw_data) + 1))]
        elif how == 1:
            t.dims[int(self.rng.integers(0, len(t.dims)))] = self.pick(ODD)
        elif how == 2:
            t.data_type = self.pick([0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 16, 99])
        else:
            array = numpy_helper.to_array(t).copy()
            array.reshape(-1)[0] = self.pick(ODD) if array.dtype.kind == "i" else self.pick([np.nan, np.inf, 1e38, 0])
            t.CopyFrom(numpy_helper.from_array(array, t.name))

    def constant(self, model: onnx.ModelProto) -> None:
        """A list of indices, axes or sizes of another length or value."""
        t = self.pick([t for t in model.graph.initializer if t.data_type == TensorProto.INT64])
        count = int(self.rng.integers(0, 8))
        array = np.array([self.pick(ODD) for _ in range(count)], np.int64)
        t.CopyFrom(numpy_helper.from_array(array, t.name))

    def dimension(self, model: onnx.ModelProto) -> None:
        port = self.pick([*model.graph.input, *model.graph.output])
        dims = port.type.tensor_type.shape.dim
        how = int(self.rng.integers(0, 4))
        if how == 0:
            dims.add().dim_value = self.pick(ODD)
        elif how == 1:
            del dims[int(self.rng.integers(0, len(dims)))]
        elif how == 2:
            dims[int(self.rng.integers(0, len(dims)))].dim_value = self.pick(ODD)
        else:
            dims[int(self.rng.integers(0, len(dims)))].dim_param = self.pick(["T", "N", "", "batch"])

    def change_type(self, model: onnx.ModelProto) -> None:
        port = self.pick([*model.graph.input, *model.graph.output])
        if self.rng.random() < 0.2:
            port.type.Clear()
        else:
            port.type.tensor_type.elem_type = self.pick([0, 1, 6, 7, 8, 9, 10, 11, 16])

    def change_op(self, model: onnx.ModelProto) -> None:
        node = self.pick(model.graph.node)
        ops = [
            "Conv",
            "GRU",
            "Slice",
            "Reshape",
            "Gather",
            "Concat",
            "Loop",
            "Resize",
            "MatMul",
            "Split",
            "Nonsense",
            "",
        ]
        if self.rng.random() < 0.2:
            node.domain = self.pick(["com.microsoft", "ai.onnx.ml", "evil"])
        else:
            node.op_type = self.pick(ops)

    def port(self, model: onnx.ModelProto) -> None:
        side = self.pick([model.graph.input, model.graph.output])
        how = int(self.rng.integers(0, 3))
        if how == 0:
            side.add().CopyFrom(self.pick(side))
        elif how == 1:
            del side[int(self.rng.integers(0, len(side)))]
        else:
            self.pick(side).name = self.pick(["", "x", "runnel.position", "state.x", "y" * 5000, "a/../b"])

    def duplicate(self, model: onnx.ModelProto) -> None:
        model.graph.node.add().CopyFrom(self.pick(model.graph.node))

    def outside(self, model: onnx.ModelProto) -> None:
        """Weights that claim to lie in a file somewhere else."""
        t = self.pick(model.graph.initializer)
        t.ClearField("raw_data")
        t.data_location = TensorProto.EXTERNAL
        entry = t.external_data.add()
        entry.key, entry.value = "location", self.pick(["/etc/passwd", "../../secret", "", "nowhere.bin"])

    def opset(self, model: onnx.ModelProto) -> None:
        model.opset_import[0].version = self.pick([-1, 0, 1, 7, 11, 13, 17, 21, 26, 1 << 40])


def outcome(data: bytes) -> str:
    try:
        runnel.inspect(data)
    except InputError as error:
        lines = str(error).splitlines()
        if any(not line.strip() or len(line) > 4000 for line in lines):
            return f"WRONG: it says {str(error)[:200]!r}"
        return "refused"
    except Exception as error:  # anything but an InputError is what is looked for
        return f"WRONG: {type(error).__name__}: {str(error)[:300]}"
    return "taken"


def main() -> None:
    first, count = int(sys.argv[1]), int(sys.argv[2])
    stop = time.monotonic() + float(sys.argv[3]) if len(sys.argv) > 3 else float("inf")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    models = _seeds()
    for seed in range(first, first + count):
        if time.monotonic() > stop:
            break
        signal.alarm(LONGEST)  # ends the process: a hang is a failure
        print(seed, end=" ", flush=True)
        print(outcome(Mutator(seed, models)()), flush=True)
    signal.alarm(0)
    print("done", flush=True)


if __name__ == "__main__":
    main()
