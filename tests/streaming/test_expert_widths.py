"""The named mode ``experts``: widths by what experts are worth, the same bits under every budget, refusals."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import plain_mixtures as plain
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "runtime"))
from loading import OK, load_in_core
from mixtures import INNER, MICROSOFT, SIZE, coded_layer
from nets import TIME, Net, stack
from onnx import numpy_helper
from quantised_nets import QuantisedNet
from test_units import tables

import runnel
from runnel.compiler.streaming.ir import Pointwise
from runnel.compiler.streaming.widths import Worth, chosen_bits
from runnel.errors import InputError, StreamError
from runnel.runtime.bundle import Bundle
from runnel.runtime.paging import KEPT
from runnel.tools.cli import main

EXPERTS, K, LAYERS = 8, 2, 2
NEVER = (6, 7)


def skewed(net: Net, x: str, likely: np.ndarray, times: float = 1, **attrs: Any) -> str:
    """x, so many times, plus a mixture of it that prefers some experts."""
    scores = net.op("Add", net.op("MatMul", x, net.weight(SIZE, EXPERTS, scale=0.3)), net.const(likely))
    names = [x, net.op("Reshape", scores, net.const(np.array([-1, EXPERTS])))]
    for out, inside in ((INNER, SIZE), (SIZE, INNER)):
        names += [net.weight(EXPERTS, out, inside, scale=0.3), net.weight(EXPERTS, out)]
    made = net.op("MoE", *names, k=K, **attrs, **MICROSOFT)
    return str(net.op("Add", net.op("Mul", x, net.const(np.array(times, np.float32))), made))


@pytest.fixture(scope="module")
def model() -> bytes:
    """Two layers, of each of which two experts are never chosen, and the first ones most."""
    net = Net(3)
    x = net.input([1, TIME, SIZE])
    likely = np.linspace(2, -2, EXPERTS).astype(np.float32)
    likely[list(NEVER)] = -100
    for _ in range(LAYERS):
        x = skewed(net, x, likely, activation_type="silu", normalize_routing_weights=1)
    return net.model(x)


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    steps = np.random.default_rng(4).standard_normal((1, 160, SIZE)).astype(np.float32)
    return np.ascontiguousarray(np.cumsum(0.2 * steps, 1))


@pytest.fixture(scope="module")
def bundle(model: bytes, recording: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("widths") / "m.rnl"
    runnel.compile(model, path, backend="native", hop=5, expert_bits=5, calibration=recording)
    return path


def play(program: runnel.Program, x: np.ndarray, chunk: int = 1) -> np.ndarray:
    stream = program.stream()
    parts = [stream.push(x[:, i : i + chunk]) for i in range(0, x.shape[1], chunk)] + [stream.flush()]
    return np.concatenate(parts, 1)


def paged(path: Path, ram: int, **options: Any) -> runnel.Program:
    return runnel.load(path, runtime=runnel.Runtime(ram=ram, **options))


def least(path: Path, **options: Any) -> int:
    facts = paged(path, 1 << 30, **options).paging
    assert facts is not None
    return facts.least


def test_what_is_used_has_more_bits(bundle: Path) -> None:
    """The mean is kept, nobody has other widths, and experts that are never chosen have the fewest bits."""
    manifest = Bundle(bundle).manifest
    used = manifest["modes"]["used"]["experts"]
    assert used["value"] == "5" and len(used["nodes"]) == LAYERS
    widths = np.array([layer["widths"] for layer in used["layers"]])
    assert set(widths.ravel()) == {4, 8}
    assert widths.mean() == 5
    assert (widths[:, list(NEVER)] == 4).all()
    assert (widths[:, 0] == 8).all()
    (deviation,) = used["deviation"].values()
    assert 0 < deviation["rms"] < 0.1
    assert max(manifest["proof"]["error"].values()) <= 1e-5


@pytest.mark.parametrize("kept", KEPT)
def test_bits_depend_on_no_budget_no_policy_and_no_chunks(bundle: Path, recording: np.ndarray, kept: str) -> None:
    x = recording[:, :40]
    expected, fewest = play(runnel.load(bundle), x), least(bundle, experts=kept)
    for share, way, ahead in (
        (0.0, "plain", "auto"),
        (0.2, "io_uring", "on"),
        (0.5, "threads", "off"),
        (1.1, "auto", "on"),
    ):
        whole = paged(bundle, 1 << 30).paging
        assert whole is not None
        program = paged(
            bundle, fewest + int(share * whole.units.all), experts=kept, experts_ahead=ahead, io=way,
            io_threads=2 * (way == "threads"),
        )  # fmt: skip
        for chunk in (1, 13):
            assert play(program, x, chunk).tobytes() == expected.tobytes()
        facts = program.paging
        assert facts is not None
        assert facts.peak <= facts.ram
        assert facts.units.chosen == 2 * LAYERS * 40 * K


@pytest.mark.parametrize("way", ["io_uring", "plain"])
def test_no_altered_expert_is_used(bundle: Path, recording: np.ndarray, tmp_path: Path, way: str) -> None:
    """Of two tables that are read side by side: the others give the same bits, also when a stream goes on later."""
    x, copy = recording[:, :30], tmp_path / "m.rnl"
    expected, ram, whole = play(runnel.load(bundle), x), least(bundle), bundle.read_bytes()
    begin = Bundle(bundle).weights_entry().offset
    told = 0
    for table, size in tables(bundle):
        copy.write_bytes(whole)
        program = paged(copy, ram + 3 * size, io=way)
        with copy.open("r+b") as file:
            file.seek(begin + table)
            file.write(bytes(byte ^ 1 for byte in whole[begin + table : begin + table + size]))
        try:
            assert play(program, x).tobytes() == expected.tobytes()
        except StreamError as error:
            assert "altered or damaged" in str(error)
            told += 1
        copy.write_bytes(whole)
        assert play(program, x).tobytes() == expected.tobytes()
    assert told >= LAYERS


def test_room_goes_where_experts_are_used(model: bytes, tmp_path: Path) -> None:
    """With experts 0 and 1 chosen always, room for a quarter of the experts holds all that are chosen."""
    net = Net(3)
    likely = np.full(EXPERTS, -100, np.float32)
    likely[:K] = 0
    y = skewed(net, skewed(net, net.input([1, TIME, SIZE]), likely), likely)
    x = np.random.default_rng(1).standard_normal((1, 80, SIZE)).astype(np.float32)
    path = tmp_path / "m.rnl"
    runnel.compile(net.model(y), path, backend="native", expert_bits=5, calibration=x)
    whole = paged(path, 1 << 30).paging
    assert whole is not None
    widths = [layer["widths"] for layer in Bundle(path).manifest["modes"]["used"]["experts"]["layers"]]
    assert widths == [[8, 8, *[4] * 6]] * 2
    wide = whole.units.all / (4 + 2 * 6 * 0.55)  # about the bytes of an expert of 8 bits
    program = paged(path, least(path) + int(3.3 * wide))
    play(program, x)
    facts = program.paging
    assert facts is not None
    assert facts.units.chosen == 2 * K * 80
    assert facts.units.found >= facts.units.chosen - 2 * K


def test_more_bits_give_less_error(model: bytes, recording: np.ndarray, tmp_path: Path) -> None:
    """And a mean of the fewest bits is the same as rounding all experts to them."""
    made: dict[str, np.ndarray] = {}
    for name in ("whole", "int4", "4", "5", "8"):
        options: dict[str, Any] = {"weights": name} if name == "int4" else {}
        if name.isdigit():
            options = {"expert_bits": int(name), "calibration": recording}
        runnel.compile(model, tmp_path / f"{name}.rnl", backend="native", **options)
        made[name] = play(runnel.load(tmp_path / f"{name}.rnl"), recording, 16)
    assert made["4"].tobytes() == made["int4"].tobytes()
    errors = [float(np.square(made[name] - made["whole"]).sum()) for name in ("4", "5", "8")]
    assert errors[0] > 2 * errors[1] and errors[1] > 2 * errors[2] > 0


def test_errors_count_by_what_they_are_added_to(recording: np.ndarray) -> None:
    """Of two layers that are alike, the one that hardly changes its stream has the fewest bits."""
    net = Net(3)
    x, likely = net.input([1, TIME, SIZE]), np.zeros(EXPERTS, np.float32)
    y = net.op("Add", skewed(net, x, likely, times=100), skewed(net, x, likely))
    found = runnel.inspect(net.model(y), expert_bits=5, calibration=recording).experts
    assert sorted(max(layer["widths"]) for layer in found) == [4, 8]
    assert max(found[1]["widths"]) == 8


def test_few_bits_and_dense_weights_besides(model: bytes, recording: np.ndarray, tmp_path: Path) -> None:
    """Experts of 2 bits are there where the mean asks for them; other weights go by --weights."""
    info = runnel.compile(
        model, tmp_path / "m.rnl", backend="native", expert_bits="3:16", weights="fp16", calibration=recording
    )
    widths = np.array([layer["widths"] for layer in info.manifest["modes"]["used"]["experts"]["layers"]])
    assert widths.mean() <= 3 and (widths[:, list(NEVER)] == 2).all() and widths.max() >= 4
    assert load_in_core(info.path) == (OK, "")  # the manifest too, with two modes
    expected = play(runnel.load(info.path), recording)
    assert play(paged(info.path, least(info.path)), recording, 7).tobytes() == expected.tobytes()


def test_mixtures_in_plain_ops(tmp_path: Path) -> None:
    net = Net(2)
    x = net.input([1, TIME, plain.SIZE])
    model = net.model(net.op("Add", x, plain.gathered(net, x, plain.Weights.of(net))))
    x = np.random.default_rng(1).standard_normal((1, 64, plain.SIZE)).astype(np.float32)
    info = runnel.compile(model, tmp_path / "m.rnl", backend="native", expert_bits=5, calibration=x)
    (layer,) = info.manifest["modes"]["used"]["experts"]["layers"]
    assert set(layer["widths"]) == {4, 8}
    expected = play(runnel.load(info.path), x)
    assert play(paged(info.path, least(info.path)), x, 7).tobytes() == expected.tobytes()


def test_on_the_command_line(model: bytes, recording: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "m.onnx").write_bytes(model)
    np.save(tmp_path / "x.npy", recording)
    given = [str(tmp_path / "m.onnx"), "--calibration", str(tmp_path / "x.npy"), "--expert-bits", "4.5"]
    assert main(["inspect", *given, "--ram", "64M"]) == 0
    page = capsys.readouterr().out
    assert "not exactly: experts=4.5" in page
    assert "of 4 bits," in page and "of 8 bits (mean" in page
    assert main(["compile", *given, "--out", str(tmp_path / "m.rnl")]) == 0
    assert "of 8 bits (mean" in capsys.readouterr().out


@pytest.mark.parametrize("value", [1, 17, "many", "4.5:7", -4, float("nan")])
def test_bits_that_are_none(model: bytes, recording: np.ndarray, value: Any) -> None:
    with pytest.raises(InputError, match="2 to 16 bits a weight"):
        runnel.inspect(model, expert_bits=value, calibration=recording)


def test_refusals(model: bytes, recording: np.ndarray) -> None:
    with pytest.raises(InputError, match="give one that is like what the model will read"):
        runnel.inspect(model, expert_bits=4.5)
    with pytest.raises(InputError, match="takes float32"):
        runnel.inspect(model, expert_bits=4.5, calibration=recording[..., :5])
    net, x = stack(16)
    with pytest.raises(InputError, match="no mixture of experts in float32"):
        runnel.inspect(net.model(net.op("Relu", x)), expert_bits=4.5, calibration=recording)
    coded = QuantisedNet(1)
    made = coded_layer(coded, coded.input([1, TIME, SIZE]), 4, k=2)[0]
    with pytest.raises(InputError, match="no mixture of experts in float32"):
        runnel.inspect(bytes(coded.model(made)), expert_bits=4.5, calibration=recording)
    net = Net(1)
    made = skewed(net, net.input([1, TIME, SIZE]), np.zeros(EXPERTS, np.float32))
    large = next(t for t in net.initializers if list(t.dims) == [EXPERTS, INNER, SIZE])
    large.CopyFrom(numpy_helper.from_array(np.full(large.dims, 1e30, np.float32), large.name))
    with pytest.raises(InputError, match="beyond float16"):
        runnel.inspect(net.model(made), expert_bits=4.5, calibration=recording)


NODE = Pointwise.__new__(Pointwise)


def worth_of(errors: list[list[float]], weights: int = 100) -> Worth:
    return Worth(NODE, np.zeros((1, 1), int), np.array(errors), weights)


def test_the_next_bits_go_where_they_take_away_most() -> None:
    layers = [worth_of([[4, 1, 0], [1, 0.2, 0], [0, 0, 0]]), worth_of([[8, 4, 0], [0.5, 0.4, 0]], 50)]
    for mean in (4, 4.3, 5, 6, 8, 9.5, 12, 16):
        bits = chosen_bits(layers, mean, (4, 8, 16))
        used = sum(w.weights * sum(own) for w, own in zip(layers, bits, strict=True))
        assert used <= mean * 400
        assert bits[0][2] == 4
    assert chosen_bits(layers, 4, (4, 8, 16)) == [[4, 4, 4], [4, 4]]
    assert chosen_bits(layers, 4.5, (4, 8, 16)) == [[4, 4, 4], [8, 4]]
    assert chosen_bits(layers, 5.5, (4, 8, 16)) == [[8, 4, 4], [8, 4]]
    assert chosen_bits(layers, 16, (4, 8, 16)) == [[16, 16, 4], [16, 16]]
    swapped = [dataclasses.replace(layers[0], errors=layers[0].errors[::-1]), layers[1]]
    assert chosen_bits(swapped, 5.5, (4, 8, 16)) == [[4, 4, 8], [8, 4]]
