"""Recurrences over a frame's own sequence or batch, and updates of a part of a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import runnel
from runnel.tools.build import compile_model

FRAMES = 9
RNG = np.random.default_rng(0)
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
Shapes = dict[str, tuple[int, ...]]


def constant(name: str, data: np.ndarray) -> Any:
    return numpy_helper.from_array(data, name)


def weights(op: str, ways: int, size: int, hidden: int) -> list[Any]:
    rows = GATES[op] * hidden
    shapes: Shapes = {"w": (ways, rows, size), "r": (ways, rows, hidden), "b": (ways, 2 * rows)}
    return [constant(n, (0.5 * RNG.standard_normal(s)).astype(np.float32)) for n, s in shapes.items()]


def check(folder: Path, nodes: list[Any], constants: list[Any], shapes: tuple[Shapes, Shapes]) -> None:
    """The native form against the model stepped by hand; inputs x and states, outputs y and ``<state>_out``."""
    inputs, outputs = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in part.items()] for part in shapes
    )
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path, bundle = folder / "m.onnx", folder / "m.rnl"
    path.write_bytes(model.SerializeToString())
    compile_model(path, bundle)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    state = {n: np.zeros(s, np.float32) for n, s in shapes[0].items() if n != "x"}
    x = RNG.standard_normal((FRAMES, *shapes[0]["x"])).astype(np.float32)
    expected = []
    for frame in x:
        y, *new = session.run(None, {"x": frame, **state})
        state = dict(zip(state, new, strict=True))
        expected.append(y)
    program = runnel.load(bundle, backend="native")
    for size in (1, 4, FRAMES):
        stream = program.stream()
        pushed = [stream.push(x[at : at + size]) for at in range(0, FRAMES, size)]
        got = np.concatenate([p["y"] if isinstance(p, dict) else p for p in pushed])
        assert np.abs(got - np.stack(expected)).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("op", "linear"), [("GRU", 0), ("GRU", 1), ("LSTM", 0), ("RNN", 0)])
@pytest.mark.parametrize(
    ("steps", "batch", "direction"),
    [(1, 1, "forward"), (5, 1, "forward"), (5, 1, "reverse"), (1, 33, "forward"), (6, 2, "bidirectional")],
)
def test_recurrence(tmp_path: Path, op: str, steps: int, batch: int, direction: str, linear: int) -> None:
    """Y and the last h of a sequence; the state comes from the frame before. An LSTM's c stays as it is given."""
    ways, size, hidden = 2 if direction == "bidirectional" else 1, 3, 5
    state = (ways, batch, hidden)
    extra = {"linear_before_reset": linear} if op == "GRU" else {}
    names = ["x", "w", "r", "b", "", "h", *(["c"] if op == "LSTM" else [])]
    nodes = [helper.make_node(op, names, ["y", "h_out"], hidden_size=hidden, direction=direction, **extra)]
    constants = weights(op, ways, size, hidden)
    if op == "LSTM":
        constants.append(constant("c", RNG.standard_normal(state).astype(np.float32)))
    inputs: Shapes = {"x": (steps, batch, size), "h": state}
    check(tmp_path, nodes, constants, (inputs, {"y": (steps, *state[:1], *state[1:]), "h_out": state}))


@pytest.mark.parametrize("batch", [1, 4])
def test_cell_state_of_one_element(tmp_path: Path, batch: int) -> None:
    names = ["x", "w", "r", "b", "", "h", "c"]
    nodes = [helper.make_node("LSTM", names, ["y", "h_out", "c_out"], hidden_size=5)]
    states: Shapes = {"h": (1, batch, 5), "c": (1, batch, 5)}
    outputs: Shapes = {"y": (1, 1, batch, 5)} | {f"{n}_out": s for n, s in states.items()}
    check(tmp_path, nodes, weights("LSTM", 1, 3, 5), ({"x": (1, batch, 3), **states}, outputs))


@pytest.mark.parametrize(
    ("at", "size"),
    [
        (np.s_[0], (3, 4)), (np.s_[-1], (3, 4)), (np.s_[:, 1:2], (2, 1, 4)), (np.s_[1, :, 2:], (3, 2)),
        (np.s_[:, 1, 1:3], (2, 2)), (np.s_[:, :, ::-1], (2, 3, 4)), (np.s_[:], (2, 3, 4)),
    ],
)  # fmt: skip
def test_part_of_a_cache(tmp_path: Path, at: Any, size: tuple[int, ...]) -> None:
    """ScatterND with constant places: a box of one axis or several, everything, and places that are no box."""
    shape = (2, 3, 4)
    if isinstance(at, int):
        places = np.array([[at]])
    else:
        flat = np.arange(24).reshape(shape)[at]
        places = np.stack(np.unravel_index(flat, shape), -1)
    nodes = [
        helper.make_node("ScatterND", ["cache", "places", "x"], ["cache_out"]),
        helper.make_node("Mul", ["cache_out", "two"], ["doubled"]),
        helper.make_node("Sub", ["doubled", "cache"], ["y"]),
    ]
    constants = [constant("places", places.astype(np.int64)), constant("two", np.array(2, np.float32))]
    x = (1, *size) if isinstance(at, int) else size
    check(tmp_path, nodes, constants, ({"x": x, "cache": shape}, {"y": shape, "cache_out": shape}))
