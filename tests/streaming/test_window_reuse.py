"""The mode reuse gives what the paper's scheme gives, says how far that is off, and is refused above a threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import Net
from oracle import Offline
from reference_runner import ReferenceRunner

import runnel
from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.emit import emit
from runnel.compiler.streaming.optimise import optimise
from runnel.errors import InputError, Refused
from runnel.models.streaminnc.networks import NETWORKS, signal
from runnel.tools.replay import play

WIDTH = 48


def network(*weights: np.ndarray, pool: int = 2) -> bytes:
    """Two padded convolutions, a pool between them, and the mean of the window."""
    net = Net()
    h = net.op("Relu", net.op("Conv", net.input([1, 3, WIDTH]), net.const(weights[0]), pads=[1, 1]))
    h = net.op("MaxPool", h, kernel_shape=[pool], strides=[pool])
    h = net.op("Relu", net.op("Conv", h, net.const(weights[1]), pads=[3, 1]))
    return net.model(h, net.op("ReduceMean", h, axes=[2], keepdims=0))


def conv(x: np.ndarray, w: np.ndarray, pads: tuple[int, int]) -> np.ndarray:
    x = np.pad(x, ((0, 0), pads))
    frames = x.shape[1] - w.shape[2] + 1
    return np.maximum(sum(w[:, :, k] @ x[:, k : k + frames] for k in range(w.shape[2])), 0)


def paper(x: np.ndarray, w: list[np.ndarray], hop: int, pool: int) -> list[np.ndarray]:
    """StreamiNNC as its authors write it: run every layer, keep the columns that were there, splice in the new ones.

    The stream begins with zeros, as ours does, and the first answers that still hold them are left out.
    """
    kept: list[np.ndarray] = []
    answers = []
    x = np.concatenate([np.zeros((3, WIDTH), np.float32), x], 1)
    for i in range((x.shape[1] - WIDTH) // hop + 1):
        window = x[:, i * hop : i * hop + WIDTH]
        first = conv(window, w[0], (1, 1))
        if kept:
            first = np.concatenate([kept[0][:, hop:], first[:, -hop:]], 1)
        pooled = first.reshape(len(first), -1, pool).max(2)
        second = conv(pooled, w[1], (3, 1))
        new = hop // pool
        if kept:
            second = np.concatenate([kept[1][:, new:], second[:, -new:]], 1)
        kept = [first, second]
        answers.append(second)
    return answers


@pytest.mark.parametrize("hop", [4, 6, 16])
def test_it_is_the_papers_scheme(hop: int) -> None:
    rng = np.random.default_rng(3)
    w = [rng.standard_normal(s).astype(np.float32) * 0.3 for s in ((5, 3, 3), (4, 5, 5))]
    graph = analyse(load(network(*w)), window=WIDTH, hop=hop, window_mode="reuse")
    assert graph.modes == {"window": "reuse"} and len(graph.mode_nodes["window"]) == 2
    optimise(graph)
    runner = ReferenceRunner(emit(graph), 0)
    x = rng.standard_normal((1, 3, 6 * WIDTH)).astype(np.float32)
    got = runner.push({"x": x}) | {}
    name = next(iter(got))
    columns = np.concatenate([got[name], runner.flush()[name]])[:, 0]
    wanted = paper(x[0], w, hop, 2)[-len(columns) :]
    settled = 2 * -(-WIDTH // hop)  # windows after which nothing from before the stream is left
    assert len(columns) > settled + 3
    for ours, theirs in list(zip(columns, wanted, strict=True))[settled:]:
        assert np.allclose(ours, theirs, atol=1e-5)


def compiled(tmp_path: Path, model: Any, **options: Any) -> Any:
    return runnel.compile(model, tmp_path / "model.rnl", **options)


def test_the_deviation_is_in_the_bundle(tmp_path: Path) -> None:
    model, x = NETWORKS["acc"](0), signal(4, 960 + 20 * 160, 32.0, 5)[None]
    info = compiled(tmp_path, model, window=960, hop=160, mode="reuse", calibration=x)
    window = info.manifest["window"]
    assert window["mode"] == "reuse" and 0.001 < window["nrmse"] < 0.05
    assert info.manifest["modes"]["used"]["window"]["value"] == "reuse"
    offline = Offline(model.SerializeToString())
    wanted = [offline({"x": x[:, :, i : i + 960]})["y"] for i in range(0, 20 * 160 + 1, 160)]  # type: ignore[index]
    wanted_all = np.stack(wanted)
    for backend in ("onnxruntime", "native"):
        got = play(runnel.load(info.path, backend=backend).stream(), {"x": x}, {"x": 2}, [500])["y"]
        error = np.sqrt(((got - wanted_all) ** 2).mean(0)) / np.ptp(wanted_all, 0)
        assert abs(float(error.mean()) - window["nrmse"]) < 1e-4


def test_above_the_threshold_it_is_refused(tmp_path: Path) -> None:
    x = signal(4, 960 + 20 * 160, 32.0, 5)[None]
    options = {"window": 960, "hop": 160, "mode": "reuse", "calibration": x, "backend": "onnxruntime"}
    with pytest.raises(Refused, match="NRMSE of .* above the threshold of 0.001"):
        compiled(tmp_path, NETWORKS["acc"](0), reuse_threshold=0.001, **options)
    assert not list(tmp_path.iterdir())


def test_a_hop_against_the_pooling_is_refused() -> None:
    rng = np.random.default_rng(3)
    w = [rng.standard_normal(s).astype(np.float32) for s in ((5, 3, 3), (4, 5, 5))]
    with pytest.raises(Refused, match="multiple of all strides"):
        analyse(load(network(*w)), window=WIDTH, hop=3, window_mode="reuse")


def test_reuse_needs_a_window(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="window"):
        compiled(tmp_path, NETWORKS["acc"](0), mode="reuse")


def test_a_window_without_padding_is_exact_in_either_mode(tmp_path: Path) -> None:
    net = Net()
    h = net.conv(net.op("Relu", net.conv(net.input([1, 3, 20]), 3, 4, 5)), 4, 4, 3)
    model = net.model(net.op("ReduceMax", h, axes=[2], keepdims=0))
    info = compiled(tmp_path, model, window=20, hop=2, mode="reuse")
    assert info.manifest["modes"] == {} and info.manifest["window"]["nrmse"] is None


@pytest.mark.parametrize("mode", ["exact", "reuse"])
@pytest.mark.parametrize(("name", "hop"), [("acc", 160), ("eeg", 128), ("ppg", 64)])
def test_the_run_counts_the_multiply_adds_that_it_was_said_to_need(
    tmp_path: Path, name: str, hop: int, mode: str
) -> None:
    model = NETWORKS[name](0)
    _, channels, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    said = runnel.inspect(model, window=width, hop=hop, mode=mode)
    assert said.macs["per_hop_reuse"] < said.macs["per_hop_exact"] < said.macs["per_hop_naive"]
    assert "naive" in said.text()
    info = compiled(tmp_path, model, window=width, hop=hop, mode=mode, backend="native", reuse_threshold=9)
    stream = runnel.load(info.path, backend="native").stream()
    x = signal(channels, width + 40 * hop, 32.0)[None]
    stream.push(x[:, :, : width + 10 * hop])
    before = stream.counters["macs"]
    stream.push(x[:, :, width + 10 * hop :])
    counted = (stream.counters["macs"] - before) / 30
    assert counted == pytest.approx(said.macs[f"per_hop_{mode}"], rel=0.1)
