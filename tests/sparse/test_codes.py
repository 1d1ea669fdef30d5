"""Neurons whose weights are halves or codes with a scale for each block: the dense result of the same codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from relu_layers import FORMS, NEURONS, WIDTH, Graph, coded_network, convolutions, network
from test_sparse import compiled, frames, paged, play, relative

import runnel
from runnel.compiler.lowering import segments, split
from runnel.compiler.lowering.nodes import neurons
from runnel.errors import InputError
from runnel.tools import predictor

SEVERAL = ("gated_second", "plain", "gated_squared")


def within_rounding(a: np.ndarray, b: np.ndarray) -> bool:
    return relative(a, b) < 2e-6


PLAIN, GATED = tuple(FORMS)[:3], tuple(FORMS)[3:]


@pytest.mark.parametrize(
    ("forms", "weights"),
    [(PLAIN, "fp16"), (PLAIN, "int8:16"), (PLAIN, "int4"), (GATED, "fp16"), (GATED, "int8"), (GATED, "int4:256")],
)
def test_exact_is_the_dense_result_of_the_same_codes(forms: tuple[str, ...], weights: str, tmp_path: Path) -> None:
    """With and without gates, squares and biases, of odd sizes; and what rounding costs is in the bundle."""
    model, x = network(*forms), frames()
    sparse = compiled(tmp_path / "s.rnl", model, weights=weights, sparse="exact")
    dense = compiled(tmp_path / "d.rnl", model, weights=weights)
    y = play(sparse, x)
    assert within_rounding(y, play(dense, x))
    assert play(sparse, x, 1).tobytes() == y.tobytes()
    modes = sparse.manifest["modes"]
    assert modes["used"]["weights"]["nodes"] == dense.manifest["modes"]["used"]["weights"]["nodes"]
    (told,), (expected,) = (m["deviation"].values() for m in (modes, dense.manifest["modes"]))
    assert told["rms"] == pytest.approx(expected["rms"], rel=1e-2) and told["rms"] > 0


@pytest.mark.parametrize(("weights", "width"), [("fp16", 2), ("int8", 1), ("int4", 0.5)])
def test_units_are_as_small_as_their_codes(weights: str, width: float, tmp_path: Path) -> None:
    """256 inputs and outputs: up, gate or both, and down; scales of up for each 32 inputs."""
    g = Graph()
    x = g.linear("x", WIDTH, 256)
    active = g.op("Relu", g.linear(x, 256, NEURONS, -1.2))
    y = g.linear(g.op("Mul", active, g.linear(x, 256, NEURONS)), NEURONS, 256)
    program = tmp_path / "m.rnl"
    compiled(program, g.model(g.linear(y, 256, WIDTH)), weights=weights, sparse="exact")
    scales = 0 if weights == "fp16" else 2 * 256 // 32
    unit = int(2 * 256 * width) + scales
    assert paged(program, 1 << 30).paging.units.all == NEURONS * -(-unit // 64) * 64


@pytest.mark.parametrize("weights", ["fp16", "int8", "int4"])
def test_bits_do_not_depend_on_what_is_in_memory(weights: str, tmp_path: Path) -> None:
    path, x = tmp_path / "m.rnl", frames()
    with pytest.MonkeyPatch.context() as patch:
        for module in (split, segments):
            patch.setattr(module, "SEGMENT_BYTES", 1 << 14)
        whole = compiled(path, network(*SEVERAL), weights=weights, sparse="exact")
    expected = play(whole, x).tobytes()
    least = paged(path, 1 << 30).paging.least
    for ram in (least, least + 20_000, 1 << 30):
        program = paged(path, ram)
        for chunk in (1, 11):
            assert play(program, x, chunk).tobytes() == expected
        facts = program.paging
        assert facts.peak <= facts.ram and facts.units.found < facts.units.chosen


@pytest.mark.parametrize("weights", ["fp16", "int8", "int4"])
def test_codes_give_the_bits_of_the_rounded_float32(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network(*SEVERAL[:2]), frames()
    codes = compiled(tmp_path / "c.rnl", model, weights=weights, sparse="exact")
    monkeypatch.setattr(neurons, "coded", lambda *_: None)
    single = compiled(tmp_path / "f.rnl", model, weights=weights, sparse="exact")
    sizes = [paged(tmp_path / f"{name}.rnl", 1 << 30).paging.units.all for name in "cf"]
    assert sizes[0] < sizes[1]
    assert play(codes, x).tobytes() == play(single, x).tobytes()


def test_rounded_activations_hide_the_layer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no feed-forward layer"):
        runnel.compile(network("gated"), tmp_path / "m.rnl", weights="int8", activations="int8", sparse="exact")


@pytest.mark.parametrize("weights", ["fp16", "int8", "int4"])
def test_every_neuron_predicted_is_the_dense_result(weights: str, tmp_path: Path) -> None:
    """Gates are rows of units as well."""
    model = tmp_path / "m.onnx"
    model.write_bytes(network(*SEVERAL))
    np.save(tmp_path / "d.npy", frames(200))
    arrays, _ = predictor.train(model, tmp_path / "d.npy", rank=4, steps=1, miss=0.5, piece=100, seed=0)
    np.savez(tmp_path / "p.npz", **{k: v + 1e6 * k.endswith("/bias") for k, v in arrays.items()})
    options = {"weights": weights, "sparse": f"predicted={tmp_path / 'p.npz'}"}
    sparse = compiled(tmp_path / "s.rnl", model, **options)
    assert set(sparse.manifest["modes"]["used"]) == {"weights", "sparse"}
    dense = compiled(tmp_path / "d.rnl", model, weights=weights)
    x = frames()
    assert relative(play(sparse, x), play(dense, x)) < 1e-5


@pytest.mark.parametrize(
    ("bits", "zeros", "predicted"),
    [(2, False, False), (4, True, False), (8, True, False), (2, True, True), (4, False, True), (8, False, True)],
)
def test_models_that_have_codes(bits: int, zeros: bool, predicted: bool, tmp_path: Path) -> None:
    """MatMulNBits, with zero points and biases too; codes stay as they are in the model."""
    model, x = tmp_path / "m.onnx", frames()
    model.write_bytes(coded_network(bits, zeros))
    sparse = "exact"
    if predicted:
        np.save(tmp_path / "d.npy", frames(200))
        arrays, _ = predictor.train(model, tmp_path / "d.npy", rank=4, steps=1, miss=0.5, piece=100, seed=0)
        np.savez(tmp_path / "p.npz", **{k: v + 1e6 * k.endswith("/bias") for k, v in arrays.items()})
        sparse = f"predicted={tmp_path / 'p.npz'}"
    program = compiled(tmp_path / "s.rnl", model, sparse=sparse)
    assert sum(k["ops"] == "choose" for k in program.manifest["kernels"]) == 1
    dense = compiled(tmp_path / "d.rnl", model)
    assert relative(play(program, x), play(dense, x)) < 1e-5
    words = -(-WIDTH * bits // 512) * 64 if bits < 8 else 48  # a row of codes
    reals = (1 + zeros) * 32 * (1 + predicted)  # float32: these are no float16
    unit = -(-((2 + predicted) * words + reals) // 64) * 64
    assert paged(tmp_path / "s.rnl", 1 << 30).paging.units.all == NEURONS * unit


def test_dequantised_matrices_are_codes(tmp_path: Path) -> None:
    """int4 by DequantizeLinear."""
    proto = onnx.load_from_string(coded_network(4, False, dequantised=True))
    assert not any(n.op_type == "MatMulNBits" for n in proto.graph.node)
    model = proto.SerializeToString()
    program = compiled(tmp_path / "s.rnl", model, sparse="exact")
    x = frames()
    assert relative(play(program, x), play(compiled(tmp_path / "d.rnl", model), x)) < 1e-5
    assert paged(tmp_path / "s.rnl", 1 << 30).paging.units.all == NEURONS * 192


def test_halves_that_a_model_has_stay_halves(tmp_path: Path) -> None:
    """Large matrices of float16 are so kept unasked, as dense ones are."""
    g = Graph()
    x = g.linear("x", WIDTH, 512)
    up, down = (g.weight(512, 512).astype(np.float16).astype(np.float32) for _ in range(2))
    active = g.op("Relu", g.op("Add", g.op("MatMul", x, g.const(up)), g.const(np.full(512, -1.2, np.float32))))
    y = g.linear(g.op("MatMul", active, g.const(down)), 512, WIDTH)
    model = g.model(y)
    program = compiled(tmp_path / "s.rnl", model, sparse="exact")
    x = frames()
    assert relative(play(program, x), play(compiled(tmp_path / "d.rnl", model), x)) < 1e-5
    assert paged(tmp_path / "s.rnl", 1 << 30).paging.units.all == 512 * 1024


def test_rounded_convolutions(tmp_path: Path) -> None:
    x = np.ascontiguousarray(frames().transpose(0, 2, 1))
    sparse, dense = (compiled(tmp_path / f"{s}.rnl", convolutions(), weights="int8", sparse=s) for s in ("exact", None))
    assert within_rounding(play(sparse, x), play(dense, x))
