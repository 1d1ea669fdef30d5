"""What the native program promises in absolute numbers: ring sizes, traffic, kernels, bytes of the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import runnel
from runnel.compiler.codegen import KernelModule, Target
from runnel.compiler.graph.model import load
from runnel.compiler.lowering.lower import lower
from runnel.compiler.lowering.plan import Planner
from runnel.compiler.lowering.rings import STATE
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.optimise import optimise
from runnel.errors import Refused

CHANNELS = 32


def tcn(
    dilations: list[int], kernel: int = 3, symmetric: bool = False, op: str = "Relu", **attrs: int
) -> onnx.ModelProto:
    """Residual dilated convolutions over [1, CHANNELS, T]."""
    rng = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for i, dilation in enumerate(dilations):
        w = (rng.standard_normal((CHANNELS, CHANNELS, kernel)) * 0.1).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        past = (kernel - 1) * dilation
        pads = [past // 2, past - past // 2] if symmetric else [past, 0]
        nodes += [
            helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"], pads=pads, dilations=[dilation]),
            helper.make_node(op, [f"c{i}"], [f"r{i}"], **attrs),
            helper.make_node("Add", [f"r{i}", name], [f"y{i}"]),
        ]
        name = f"y{i}"
    port = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, CHANNELS, "T"]) for n in ("x", name)]
    graph = helper.make_graph(nodes, "tcn", port[:1], port[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def planned(model: onnx.ModelProto, hop: int) -> Planner:
    graph = analyse(load(model))
    optimise(graph)
    planner = Planner(lower(graph), hop, KernelModule(Target.host()))
    planner.build()
    return planner


@pytest.mark.parametrize("hop", [1, 4, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rings_hold_what_readers_need_and_no_more(hop: int, symmetric: bool) -> None:
    dilations = [1, 4, 64]
    planner = planned(tcn(dilations, symmetric=symmetric), hop)
    rings = [r for r in planner.rings.values() if r.space == STATE]
    spans = sorted(2 * d + 1 for d in dilations)
    slots = sorted(r.slots for r in rings)
    assert len(rings) == len(dilations)  # the last layer's output never waits
    assert slots == [span + hop - 1 for span in spans]
    assert all(r.margin <= 2 + hop - 1 for r in rings)  # a run of three taps and a step's rows: O(hop) is mirrored


def test_a_layer_is_one_kernel() -> None:
    planner = planned(tcn([2, 4, 8, 16]), 1)
    assert len(planner.groups) == 4
    # and all four layers share its code: one form for a row, one for rows of several streams
    assert len({k for k, *_ in planner.symbols}) == 2


@pytest.mark.parametrize("hop", [1, 16])
def test_bytes_moved_a_step_do_not_grow_with_the_dilation(tmp_path: Path, hop: int) -> None:
    moved = []
    for dilation in (1, 8, 512):
        path = tmp_path / f"{dilation}.rnl"
        runnel.compile(tcn([dilation, dilation]), path, hop=hop)
        stream = runnel.load(path).stream()
        x = np.zeros((1, CHANNELS, hop), np.float32)
        for _ in range(300):
            stream.push(x)
        moved.append(stream.counters["margin_bytes"] / stream.counters["steps"])
    assert max(moved) <= hop * CHANNELS * 4 * 2  # at most each frame of both rings once more
    assert moved[2] <= moved[1] <= moved[0]


def test_equal_inputs_give_equal_bundles(tmp_path: Path) -> None:
    for name in ("a", "b"):
        runnel.compile(tcn([1, 2]), tmp_path / f"{name}.rnl", hop=4)
    assert (tmp_path / "a.rnl").read_bytes() == (tmp_path / "b.rnl").read_bytes()


def test_hops_read_the_same_weights_and_give_the_same_bits(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((1, CHANNELS, 203)).astype(np.float32)
    results = []
    for hop in (1, 4, 16, 64):
        path = tmp_path / f"{hop}.rnl"
        manifest = runnel.compile(tcn([1, 8], symmetric=True), path, hop=hop).manifest
        stream = runnel.load(path).stream()
        results.append((np.concatenate([stream.push(x), stream.flush()], 2).tobytes(), manifest["weights"]["segments"]))
    assert all(r == results[0] for r in results)


def test_a_model_without_kernels_falls_back_and_says_why(tmp_path: Path) -> None:
    model = tcn([1], op="LpNormalization", axis=1)
    manifest = runnel.compile(model, tmp_path / "m.rnl").manifest
    assert manifest["backends"] == ["onnxruntime"]
    assert "LpNormalization" in manifest["native_refusal"]
    with pytest.raises(Refused, match="LpNormalization"):
        runnel.compile(model, tmp_path / "n.rnl", backend="native")
    assert not (tmp_path / "n.rnl").exists()


def test_a_state_is_small_and_known(tmp_path: Path) -> None:
    """Four layers of 32 channels, dilations 2 to 16, hop 1: the rings (multiples of 64), the header, no more."""
    runnel.compile(tcn([2, 4, 8, 16]), tmp_path / "m.rnl", hop=1)
    rings = sum((2 * d + 1) * CHANNELS * 4 for d in (2, 4, 8, 16))
    assert runnel.load(tmp_path / "m.rnl").state_bytes == rings + 128


def test_a_bundle_carries_the_licence_beside_the_model(tmp_path: Path) -> None:
    onnx.save(tcn([1]), str(tmp_path / "m.onnx"))
    (tmp_path / "LICENSE.txt").write_text("as you like\n")
    (tmp_path / "notes.txt").write_text("not this\n")
    manifest = runnel.compile(tmp_path / "m.onnx", tmp_path / "m.rnl").manifest
    assert [e for e in manifest["entries"] if e.startswith("licences/")] == ["licences/LICENSE.txt"]


def test_a_bound_input_belongs_to_windows_too(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Mul", ["c", "gain"], ["y"])]
    ports = {"x": [1, CHANNELS, 9], "gain": [1], "y": [1, CHANNELS, 7]}
    x, gain, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in ports.items())
    graph = helper.make_graph(nodes, "gained", [x, gain], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    bundle = runnel.compile(model, tmp_path / "m.rnl", window=9, bind={"gain": np.array([2.0], np.float32)})
    assert bundle.manifest["proof"]["frames"] == [14, 9]
