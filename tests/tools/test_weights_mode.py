"""The named modes ``weights`` and ``activations``: smaller bundles, shorter steps, the deviation measured."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "streaming"))
from mixtures import layer
from nets import TIME, Net, stack

import runnel
from runnel.compiler.graph.rounded import recoded, rounded
from runnel.errors import InputError
from runnel.tools.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution, its statistics folded in, a GRU and a product of 64 channels."""
    net, x = stack(64)
    h = net.op("Relu", net.conv(x, 64, 96, 3, pads=[2, 0]))
    h = net.op("BatchNormalization", h, *(net.weight(96) for _ in range(3)), net.const(np.ones(96, np.float32)))
    h = net.op("Transpose", h, perm=[2, 0, 1])
    h = net.op("GRU", h, net.weight(1, 192, 96), net.weight(1, 192, 64), net.weight(1, 384), hidden_size=64)
    h = net.op("MatMul", net.op("Squeeze", h, net.const(np.array([1]))), net.weight(64, 80))
    path = tmp_path_factory.mktemp("weights") / "model.onnx"
    path.write_bytes(net.model(h))
    return path


def stored(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return sum(e.file_size for e in archive.infolist() if e.filename.startswith("weights/"))


@pytest.mark.parametrize(
    ("value", "share", "most"), [("int8", 0.33, 0.01), ("int4:64", 0.2, 0.15), ("fp16", 0.53, 1e-3)]
)
def test_smaller_and_measured(model: Path, tmp_path: Path, value: str, share: float, most: float) -> None:
    whole = runnel.compile(model, tmp_path / "whole.rnl", backend="native")
    info = runnel.compile(model, tmp_path / "small.rnl", weights=value, backend="native")
    assert stored(info.path) < share * stored(whole.path)
    used = info.manifest["modes"]["used"]["weights"]
    assert used["value"] == value and len(used["nodes"]) == 3
    (deviation,) = used["deviation"].values()
    assert 0 < deviation["rms"] < most
    assert max(info.manifest["proof"]["error"].values()) <= 1e-5
    assert "matmul_blocks" in {k["ops"].split("+")[0] for k in info.manifest["kernels"]}


def test_experts_of_few_bits(tmp_path: Path) -> None:
    """A unit has few more than half a byte a weight."""
    net = Net(1)
    x = net.input([1, TIME, 32])
    (tmp_path / "m.onnx").write_bytes(net.model(layer(net, x, experts=4, k=2)))
    whole = runnel.compile(tmp_path / "m.onnx", tmp_path / "whole.rnl", backend="native")
    info = runnel.compile(tmp_path / "m.onnx", tmp_path / "small.rnl", weights="int4", backend="native")
    assert stored(info.path) < 0.4 * stored(whole.path)
    assert [n.split()[0] for n in info.manifest["modes"]["used"]["weights"]["nodes"]] == ["MoE"]
    assert max(info.manifest["proof"]["error"].values()) <= 1e-5


@pytest.mark.parametrize("target", ["host", "x86-64-v3"], ids=["codes", "floats"])
def test_rounded_activations(tmp_path: Path, target: str) -> None:
    """Products of codes where the processor has them, of rounded float32 elsewhere; proved and measured."""
    net, x = stack(96)
    h = net.op("Relu", net.op("MatMul", net.op("Transpose", x, perm=[0, 2, 1]), net.weight(96, 112)))
    (tmp_path / "m.onnx").write_bytes(net.model(net.op("MatMul", h, net.weight(112, 40))))
    options = {"weights": "int8", "activations": "int8", "target": target, "backend": "native", "hop": 4}
    info = runnel.compile(tmp_path / "m.onnx", tmp_path / "m.rnl", **options)
    modes = info.manifest["modes"]
    assert set(modes["used"]) == {"weights", "activations"}
    assert len(modes["used"]["activations"]["nodes"]) == 2
    (deviation,) = modes["deviation"].values()
    assert 1e-4 < deviation["rms"] < 0.02
    errors = info.manifest["proof"]["error"]
    if "native" in errors:
        assert errors["native"] <= info.manifest["proof"]["limit"] <= 0.25 * 0.05
    assert "round_blocks" in {k["ops"] for k in info.manifest["kernels"]}


def test_activations_in_float16(tmp_path: Path) -> None:
    """Histories of products take half of the bytes; both backends round alike."""
    net, x = stack(64)
    for d in (1, 8):
        padded = net.op("Pad", x, net.const([0, 0, 2 * d, 0, 0, 0]))
        x = net.op("Tanh", net.conv(padded, 64, 64, 3, dilations=[d]))
    model = net.model(net.op("MatMul", net.op("Transpose", x, perm=[0, 2, 1]), net.weight(64, 40)))
    whole = runnel.compile(model, tmp_path / "whole.rnl", backend="native", weights="fp16")
    info = runnel.compile(model, tmp_path / "small.rnl", backend="native", weights="fp16", activations="fp16")
    modes, proof = info.manifest["modes"], info.manifest["proof"]
    assert len(modes["used"]["activations"]["nodes"]) == 3
    (deviation,) = modes["deviation"].values()
    assert 1e-5 < deviation["rms"] < 2e-3
    assert max(proof["error"].values()) <= proof["limit"] <= 5e-3
    sizes = [runnel.load(made.path, backend="native").state_bytes for made in (whole, info)]
    assert sizes[1] < 0.65 * sizes[0]


def test_activations_of_a_model_without_codes_are_left_alone(model: Path) -> None:
    assert runnel.inspect(model, activations="int8").modes == runnel.inspect(model, activations="fp16").modes == {}
    with pytest.raises(InputError, match="int8 or fp16"):
        runnel.inspect(model, activations="int4")


def test_on_the_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "m.rnl")
    assert main(["compile", str(model), "--out", out, "--weights", "int4"]) == 0
    assert "weights=int4 in" in capsys.readouterr().out
    assert main(["inspect", str(model), "--mode", "weights=int8:64"]) == 0
    page = capsys.readouterr().out
    assert "not exactly: weights=int8:64" in page and "in Conv 'node_Conv" in page


@pytest.mark.parametrize("value", ["int5", "int8:0", "int8:48", "fp16:32", ""])
def test_a_kind_that_is_none(model: Path, value: str) -> None:
    with pytest.raises(InputError, match="int8, int4, fp16"):
        runnel.inspect(model, weights=value)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("size", [1e-9, 1e-3, 1.0, 300.0])
def test_rounding_is_found_again(bits: int, size: float) -> None:
    weights = (np.random.default_rng(bits).standard_normal((70, 24)) * size).astype(np.float32)
    assert recoded(weights, bits, 32) is None
    once = rounded(weights, bits, 32, 0)
    found = recoded(np.ascontiguousarray(once), bits, 32)
    assert found is not None and np.array_equal(found.real(), once)
    assert np.array_equal(rounded(once, bits, 32, 0), once)
    if size > 1e-6:
        assert np.abs(once - weights).max() <= np.abs(weights).max() * {4: 0.13, 8: 0.0045, 16: 0.0005}[bits]


def test_beyond_halves_weights_stay() -> None:
    weights = np.full((64, 16), 1e30, np.float32)
    assert rounded(weights, 8, 32, 0) is weights
