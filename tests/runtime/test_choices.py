"""Branches that are chosen frame by frame: exact, and what is not taken is neither computed nor read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from early_exit import WIDTH, called_in_turn, model
from onnx import TensorProto, helper, numpy_helper

import runnel
from runnel.compiler.lowering import segments, split
from runnel.errors import Refused

X = np.random.default_rng(8).standard_normal((60, 1, 16)).astype(np.float32)
ALWAYS, NEVER = -9.0, 9.0


def compiled(path: Path, given: bytes, **options: object) -> Path:
    """With small segments, so that the weights of a branch are some of their own."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (split, segments):
            patch.setattr(module, "SEGMENT_BYTES", 1 << 14)
        runnel.compile(given, path, **options)
    return path


KINDS = {"always": (ALWAYS, None), "never": (NEVER, None), "mixed": (0.0, None), "nested": (0.0, 0.0)}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("choices")
    return {name: compiled(folder / f"{name}.rnl", model(*kind), backend="native") for name, kind in KINDS.items()}


def play(program: runnel.Program, chunk: int = 7) -> np.ndarray:
    stream = program.stream()
    parts = [stream.push(X[i : i + chunk]) for i in range(0, len(X), chunk)]
    return np.concatenate([*parts, stream.flush()])


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_model_called_in_turn(bundles: dict[str, Path], kind: str) -> None:
    expected = called_in_turn(model(*KINDS[kind]), X)
    native = runnel.load(bundles[kind], poison=True)
    whole = play(native, 60)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    np.testing.assert_allclose(play(runnel.load(bundles[kind], backend="onnxruntime")), expected, atol=1e-6)
    for chunk in (1, 7):
        np.testing.assert_array_equal(play(native, chunk), whole)


def test_streams_of_a_batch_choose_for_themselves(bundles: dict[str, Path]) -> None:
    program = runnel.load(bundles["nested"])
    batch = program.batch(3)
    lanes = [batch.join() for _ in range(3)]
    singles = [program.stream() for _ in lanes]
    for t in range(20):
        frames = {lane: X[(t + 17 * k) % 60][None] for k, lane in enumerate(lanes)}
        got = batch.push(frames)
        for lane, single in zip(lanes, singles, strict=True):
            np.testing.assert_array_equal(got[lane], single.push(frames[lane]))


def test_what_is_not_taken_is_not_computed(bundles: dict[str, Path]) -> None:
    calls = {}
    for kind in ("always", "never"):
        stream = runnel.load(bundles[kind]).stream()
        stream.push(X)
        calls[kind] = stream.counters["macs"] / len(X)
    first, early = 16 * WIDTH + WIDTH * WIDTH, WIDTH * 32
    late = 2 * WIDTH * WIDTH + 4 * WIDTH * WIDTH + 4 * WIDTH * 32
    assert first + early <= calls["always"] < first + early + WIDTH * 16
    assert first + late <= calls["never"] < first + late + early + WIDTH * 8  # the early branch is too small to skip


def test_weights_of_what_is_not_taken_are_not_read(bundles: dict[str, Path]) -> None:
    whole = {kind: play(runnel.load(path)) for kind, path in bundles.items()}
    read = {}
    for kind, path in bundles.items():
        large = runnel.load(path, ram=1 << 30).paging
        program = runnel.load(path, ram=large.least)
        stream = program.stream()
        np.testing.assert_array_equal(np.concatenate([stream.push(X[t : t + 1]) for t in range(60)]), whole[kind])
        facts = program.paging
        assert facts.streamed > 0
        assert facts.peak <= large.least
        read[kind] = (facts.bytes_read / 60, facts.weights, facts.dropped)
    late = 4 * (6 * WIDTH * WIDTH + 4 * WIDTH * 32)
    assert read["always"][0] < read["always"][1] - late + 1000
    assert read["always"][2] == 0
    assert read["never"][0] > 0.8 * late
    assert read["always"][0] < read["mixed"][0] < read["never"][0]


def test_a_choice_in_a_stream_of_any_length(tmp_path: Path) -> None:
    """No If: frames of an offline model that a Where chooses by a number a frame."""
    rng = np.random.default_rng(2)
    weights = {"w": (8, 128), "v": (128, 8)}
    constants = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()]
    constants.append(numpy_helper.from_array(np.float32(0.2), "t"))
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2]),
        helper.make_node("Greater", ["m", "t"], ["c"]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["e"]),
        helper.make_node("MatMul", ["e", "v"], ["f"]),
        helper.make_node("Where", ["c", "f", "x"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "T", 8]) for n in "xy"]
    graph = helper.make_graph(nodes, "chosen", ports[:1], ports[1:], constants)
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    runnel.compile(given, tmp_path / "m.rnl", backend="native", hop=6)
    program = runnel.load(tmp_path / "m.rnl", poison=True)
    x = rng.standard_normal((1, 50, 8)).astype(np.float32)
    chosen = int((x.mean(2) > 0.2).sum())
    whole = program.stream()
    y = whole.push(x)
    for chunk in (1, 4, 6, 11):
        stream = program.stream()
        parts = [stream.push(x[:, i : i + chunk]) for i in range(0, 50, chunk)]
        np.testing.assert_array_equal(np.concatenate(parts, 1), y)
    assert 0 < chosen < 50
    assert whole.counters["macs"] < 50 * 100 + chosen * 4 * 8 * 128 * 1.2


def refusal(nodes: list[object], *constants: TensorProto, shape: int = 4) -> Refused:
    """Of an If whose first branch has these nodes, from x and h to ``o``."""
    floats = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "h", "h_out")]
    sides = [
        helper.make_graph(nodes, "a", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1, shape])]),
        helper.make_graph(
            [helper.make_node("Neg", ["x"], ["p"])], "b", [],
            [helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, 4])],
        ),
    ]  # fmt: skip
    outer = [
        helper.make_node("Add", ["x", "h"], ["h_out"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=sides[0], else_branch=sides[1]),
    ]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    zero = numpy_helper.from_array(np.float32(0), "zero")
    graph = helper.make_graph(outer, "refused", floats[:2], [y, floats[2]], [zero, *constants])
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(Refused) as caught:
        runnel.inspect(given.SerializeToString())
    return caught.value


def test_a_branch_that_looks_up_by_a_computed_number_is_refused() -> None:
    nodes = [
        helper.make_node("Cast", ["s"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "i"], ["row"]),
        helper.make_node("Add", ["x", "row"], ["o"]),
    ]
    table = numpy_helper.from_array(np.ones((50, 4), np.float32), "table")
    assert "not taken" in str(refusal(nodes, table))


def test_branches_of_unlike_shapes_are_refused() -> None:
    assert "unlike shapes" in str(refusal([helper.make_node("ReduceSum", ["x"], ["o"], keepdims=1)], shape=1))
