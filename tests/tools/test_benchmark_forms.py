"""The forms that peers take: steps without recurrent cells, steps on codes, and files for LiteRT."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from runnel.tools.benchmark import driver, nets
from runnel.tools.benchmark.case import Case, Output, State
from runnel.tools.benchmark.coded import coded_step
from runnel.tools.benchmark.harness import Settings, compete
from runnel.tools.benchmark.plain import CELLS, without_cells
from runnel.tools.benchmark.prepare import prepare, quantise
from runnel.tools.benchmark.workloads import Workload

SHORT = Settings(rounds=2, seconds=0.001)
Shape = tuple["int | str", ...]


@pytest.fixture(scope="module", autouse=True)
def _driver(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["RUNNEL_BENCH_DRIVER"] = str(driver.build(tmp_path_factory.mktemp("driver")))


def run(model: bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds)))


def noise(model: bytes) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return {v.name: random.standard_normal(v.shape).astype(np.float32) for v in session.get_inputs()}


def cell(op: str, direction: str, frames: int, batch: int, begins: str = "given", **attrs: int) -> bytes:
    """begins: whether the first states are given, constant or left out."""
    b = nets.Builder()
    turns = 2 if direction == "bidirectional" else 1
    gates, states = CELLS[op], ["h"] if op == "GRU" else ["h", "c"]
    weights = [b.weight(turns, gates * 4, n) for n in (3, 4)]
    bias = b.constant(0.3 * b.random.standard_normal((turns, 2 * gates * 4)))
    first = {"given": states, "constant": [b.weight(turns, batch, 4) for _ in states], "none": []}[begins]
    from onnx import helper

    b.nodes.append(
        helper.make_node(op, ["x", *weights, bias, "", *first], ["y", *(f"{s}_next" for s in states)], "cell",
                         hidden_size=4, direction=direction, **attrs)
    )  # fmt: skip
    state: Shape = (turns, batch, 4)
    given = dict.fromkeys(states, state) if begins == "given" else {}
    made = {"y": (frames, turns, batch, 4)} | {f"{s}_next": state for s in states}
    return b.model({"x": (frames, batch, 3)} | given, made)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model",
    [
        cell("GRU", "forward", 1, 2, linear_before_reset=1),
        cell("GRU", "bidirectional", 3, 2, linear_before_reset=0),
        cell("GRU", "reverse", 3, 1, "constant", linear_before_reset=1),
        cell("LSTM", "forward", 1, 3),
        cell("LSTM", "bidirectional", 4, 2),
        cell("LSTM", "forward", 3, 1, "none"),
    ],
)
def test_cells_in_parts_compute_the_same(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "step.onnx").write_bytes(model)
    feeds = noise(model)
    parts = without_cells(tmp_path / "step.onnx")
    assert parts is not None
    (tmp_path / "plain.onnx").write_bytes(parts)
    assert without_cells(tmp_path / "plain.onnx") is None
    for name, value in run(model, feeds).items():
        np.testing.assert_allclose(run(parts, feeds)[name], value, atol=2e-6, err_msg=name)


def test_cells_of_another_kind_are_left(tmp_path: Path) -> None:
    (tmp_path / "step.onnx").write_bytes(cell("LSTM", "forward", 1, 1, input_forget=1))
    with pytest.raises(ValueError, match="LSTM with"):
        without_cells(tmp_path / "step.onnx")


def net(shape: Shape, out: Shape, build: Callable[[nets.Builder], str], *more: Shape) -> bytes:
    b = nets.Builder()
    b.op("Identity", build(b), output="y")
    return b.model({"x": shape} | {f"x{i}": s for i, s in enumerate(more)}, {"y": out})


def ints(b: nets.Builder, *values: int) -> str:
    return b.constant(np.array(values, np.int64))


def scattered(b: nets.Builder) -> str:
    """Frames 1 and 2 of an axis in the middle."""
    places = np.stack(np.meshgrid(np.arange(3), [1, 2], indexing="ij"), -1).astype(np.int64)
    return b.op("ScatterND", "x", b.constant(places), "x0")


def transposed(b: nets.Builder, inside: int, outside: int, kernel: tuple[int, ...], **attrs: object) -> str:
    group = int(attrs.get("group", 1))  # type: ignore[call-overload]
    weight, bias = b.weight(inside, outside // group, *kernel), b.weight(outside)
    return b.op("ConvTranspose", "x", weight, bias, kernel_shape=list(kernel), **attrs)


NETS = {
    "slopes": net((1, 4, 5, 6), (1, 4, 5, 6), lambda b: b.op("PRelu", b.conv("x", 4, 4, (1, 1)), b.weight(4, 1, 1))),
    "one slope": net((1, 4, 5), (1, 4, 5), lambda b: b.op("PRelu", b.conv("x", 4, 4, (1,)), b.weight(1))),
    "one place": net((2, 3, 4), (2, 4), lambda b: b.op("Gather", "x", b.constant(np.array(-1)), axis=1)),
    "places": net((2, 3, 4), (2, 2, 2, 4), lambda b: b.op("Gather", "x", b.constant(np.array([[0, 2], [1, 0]])),
                                                         axis=1)),
    "zeros around": net((1, 2, 4), (1, 3, 7), lambda b: b.op("Pad", "x", ints(b, 0, 1, 2, 0, 0, 1))),
    "reflected": net((1, 6), (1, 9), lambda b: b.op("Pad", "x", ints(b, 0, 1, 0, 2), mode="reflect")),
    "written into": net((3, 4, 2), (3, 4, 2), scattered, (3, 2, 2)),
    "norm": net((1, 5, 3), (1, 5, 3), lambda b: b.op("LayerNormalization", "x", b.weight(3), b.weight(3))),
    "norm of channels": net(
        (1, 5, 3), (1, 3, 4),
        lambda b: b.op("LayerNormalization", b.op("Transpose", b.conv("x", 5, 4, (1,)), perm=[0, 2, 1]), b.weight(4)),
    ),
    "groups": net((1, 8, 3, 6), (1, 4, 3, 4), lambda b: b.conv("x", 8, 4, (1, 3), group=2)),
    "mean": net((1, 4, 5), (1, 4), lambda b: b.op("ReduceMean", "x", axes=[-1], keepdims=0)),
    "unlike ranks": net((2, 3), (4, 2, 3), lambda b: b.op("Mul", b.op("Pow", "x", b.constant(2.0)), "x0"), (4, 2, 3)),
    "turned": net(
        (1, 6, 5, 7), (1, 6, 1, 7),
        lambda b: transposed(b, 6, 6, (3, 3), group=6, dilations=[2, 1], pads=[4, 1, 4, 1]),
    ),
    "upwards": net((1, 4, 2, 5), (1, 6, 2, 9), lambda b: transposed(b, 4, 6, (1, 5), group=2, strides=[1, 2],
                                                                    pads=[0, 2, 0, 2])),
    "overlapped": net((1, 3, 4), (1, 2, 8), lambda b: transposed(b, 3, 2, (6,), strides=[2], pads=[1, 3])),
    "recurrent": cell("GRU", "bidirectional", 3, 2, linear_before_reset=1),
    "tcn": nets.tcn_step(2, 1, 8, 3),
    "soundstream": nets.soundstream(4, (2, 4), 6, 16),
    "movinet": nets.movinet(True, 32, (24, 16, 5)),
}  # fmt: skip


def by_litert(place: Path, step: bytes, feeds: dict[str, np.ndarray], states: dict[str, str]) -> dict[str, np.ndarray]:
    """What LiteRT makes of a step. states: {input: output}."""
    pytest.importorskip("ai_edge_litert", reason="pip install ai-edge-litert")
    from runnel.tools.benchmark.contenders.litert import Written

    (place / "step.onnx").write_bytes(step)
    if plain := without_cells(place / "step.onnx"):
        (place / "plain.onnx").write_bytes(plain)
    np.save(place / "x.npy", feeds["x"][None])
    np.savez(place / "y.npz", y=run(step, feeds)["y"])
    described = []
    for i, (given, made) in enumerate(states.items()):
        value = feeds[given]
        np.save(place / f"{i}.npy", value)
        described.append(State(given, made, value.shape, str(value.dtype), initial=f"{i}.npy"))
    output = [Output("y", -1, 1)]
    written = Written(Case(str(place), "step", "frame", 1, "x", 0, output, output, states=described))
    written.reset()
    written.give(feeds["x"])
    written.advance()
    return {n: written._natural(n, written.interpreter.get_tensor(written.outputs[n])) for n in written.made}


@pytest.mark.parametrize("step", NETS.values(), ids=NETS)
def test_steps_written_for_litert_are_the_same(tmp_path: Path, step: bytes) -> None:
    feeds = noise(step)
    values = run(step, feeds)
    given, made = [n for n in feeds if n != "x"], [n for n in values if n != "y"]
    got = by_litert(tmp_path, step, feeds, dict(zip(given, made or ["y"] * len(given))))
    for name, value in values.items():
        allowed = 1e-5 * max(1, np.abs(value).max())
        np.testing.assert_allclose(got[name].reshape(value.shape), value, atol=allowed, err_msg=name)


def test_what_the_writer_lacks_is_told(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="pip install ai-edge-litert")
    from runnel.tools.benchmark import tflite, tflite_moves, tflite_ops  # noqa: F401

    apart = np.array([[0], [2]], np.int64)
    wanted = {
        "no rule for Erf": net((1, 4), (1, 4), lambda b: b.op("Erf", "x")),
        "scattered places": net((4, 2), (4, 2), lambda b: b.op("ScatterND", "x", b.constant(apart), "x0"), (2, 2)),
        "more output": net(
            (1, 1, 3, 3), (1, 1, 6, 6), lambda b: transposed(b, 1, 1, (1, 1), strides=[2, 2], output_padding=[1, 1])
        ),
    }  # fmt: skip
    for text, model in wanted.items():
        (tmp_path / "m.onnx").write_bytes(model)
        with pytest.raises(tflite.Unsupported, match=text):
            tflite.Writer(tmp_path / "m.onnx").convert()


def test_steps_on_codes_are_those_of_the_quantised_stack(tmp_path: Path) -> None:
    whole = tmp_path / "whole.onnx"
    whole.write_bytes(nets.tcn(8, 3))
    quantise(whole, Workload("codes", lambda: b"", scale=1.0))
    found = coded_step(whole, 2)
    assert found is not None
    step, states = found
    assert [s.shape for s in states] == [(1, 8, 2), (1, 8, 4), (1, 8, 8)]
    assert all(s.dtype == "uint8" for s in states) and any(s.fill for s in states)  # the code of zero
    x = np.random.default_rng(0).standard_normal((1, 8, 12)).astype(np.float32)
    wanted = run(whole.read_bytes(), {"x": x})["y"]
    held = {s.given: np.full(s.shape, s.fill, s.dtype) for s in states}
    for n in range(0, 12, 2):
        feeds = {"x": np.ascontiguousarray(x[:, :, n : n + 2])} | held
        values = run(step, feeds)
        np.testing.assert_array_equal(values["y"], wanted[:, :, n : n + 2])
        held = {s.given: values[s.made] for s in states}
    got = by_litert(tmp_path, step, feeds, {s.given: s.made for s in states})
    np.testing.assert_allclose(got["y"].reshape(values["y"].shape), values["y"], atol=0.02 * np.ptp(wanted))
    for s in states:
        assert np.abs((got[s.made].astype(int) + 128) - values[s.made].astype(int)).max() <= 1


def test_only_stacks_get_a_step_on_codes(tmp_path: Path) -> None:
    (tmp_path / "whole.onnx").write_bytes(nets.soundstream(4, (2, 4), 6))
    assert coded_step(tmp_path / "whole.onnx", 8) is None


def test_steps_of_one_stream_serve_several(tmp_path: Path) -> None:
    """One after the other, each with states of its own."""
    from runnel.tools.benchmark.contenders.ort import Step

    workload = Workload("three", lambda: nets.recurrent("GRU", 5, 7), lanes=3, scale=1.0)
    case, _ = prepare(workload, tmp_path)
    assert case.batch_axis == -1
    found = {e.name: e for e in compete(case, SHORT, ["native", "ort", "litert"])}
    for name in ("runnel", "onnxruntime, states", "onnxruntime, bound", "LiteRT"):
        assert found[name].verdict in ("right", "absent"), found[name].reason
    one = Step(case)
    stepped = one.step()
    assert isinstance(stepped, list) and len(stepped) == 3


def test_codes_written_for_litert_are_close_to_those_of_onnxruntime(tmp_path: Path) -> None:
    """One code of the output's 256 is 1/255 of its range; a few of them may add up."""
    pytest.importorskip("ai_edge_litert", reason="pip install ai-edge-litert")

    def small() -> bytes:
        b = nets.Builder()
        x = b.op("Relu", b.conv("x", 3, 8, (3, 3), pads=[1, 1, 1, 1]))
        y = b.conv(x, 8, 8, (3, 3), group=8, strides=[2, 2], pads=[1, 1, 0, 0])
        z = b.conv(b.op("Relu", x), 8, 8, (1, 1), strides=[2, 2])
        joined = b.op("Concat", b.op("Add", y, z), z, axis=1)
        shape, two = b.constant(np.array([1, -1])), b.constant(np.array([2], np.int64))
        b.op("Slice", b.op("Reshape", joined, shape), two, b.constant(np.array([90], np.int64)),
             b.constant(np.array([1], np.int64)), output="y")  # fmt: skip
        return b.model({"x": (1, 3, 8, 8)}, {"y": (1, 88)})

    options = {"time_axis": {"x": 0}, "window": 1}
    workload = Workload("codes", small, "frame", quantise=True, codes=True, scale=1.0, options=options)
    case, _ = prepare(workload, tmp_path)
    found = {e.name: e for e in compete(case, SHORT, ["native", "ort", "litert"])}
    assert found["LiteRT"].verdict == "right", found["LiteRT"].reason
    assert found["LiteRT"].error is not None and found["LiteRT"].error < 0.4  # of 0.05
    from runnel.tools.benchmark import tflite, tflite_moves, tflite_ops  # noqa: F401

    written = tflite.Writer(tmp_path / "step.onnx")
    written.convert()
    assert written.codes.keys() >= {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "CONCATENATION", "QUANTIZE"}
    assert list(written.codes).count("DEQUANTIZE") <= 1
    ends = [o for o in written.operators if written.tensors[o.outputs[0]].type == tflite.FLOAT]
    assert len(ends) <= 1  # nothing but the output is float32
