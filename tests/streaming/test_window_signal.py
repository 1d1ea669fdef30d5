"""Signal padding is the network without padding over time on the window and its context; else it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nets import Net
from oracle import Check, Offline

import runnel
from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import InputError, Refused
from runnel.models.streaminnc.networks import NETWORKS, signal
from runnel.tools.replay import play

WIDTH = 48
SIGNAL: dict[str, Any] = {"window_mode": "reuse", "padding": "signal"}

Layer = tuple[str, int, int, int, int, int]
"""(op, kernel, stride, dilation, padding before, padding behind)."""
CHAINS: dict[str, list[Layer]] = {
    "same": [("Conv", 3, 1, 1, 1, 1), ("Conv", 5, 1, 1, 2, 2)],
    "causal": [("Conv", 5, 1, 2, 8, 0), ("AveragePool", 4, 4, 1, 0, 0), ("Conv", 3, 1, 2, 4, 0)],
    "uneven": [("Conv", 3, 1, 1, 0, 2), ("Conv", 5, 1, 1, 3, 1), ("MaxPool", 2, 2, 1, 0, 0)],
    "strided": [("Conv", 3, 2, 1, 1, 1), ("MaxPool", 3, 2, 1, 1, 1), ("Conv", 3, 1, 1, 1, 1)],
    "pools": [("MaxPool", 3, 1, 1, 1, 1), ("AveragePool", 3, 1, 1, 1, 1), ("AveragePool", 5, 2, 1, 2, 2)],
    "pad": [("Pad", 1, 1, 1, 4, 2), ("Conv", 7, 1, 1, 0, 0), ("MaxPool", 2, 2, 1, 0, 0), ("Pad", 1, 1, 1, 0, 2)],
}  # fmt: skip


def chain(layers: list[Layer], head: str, padded: bool) -> tuple[bytes, tuple[int, int]]:
    """The network, and how many frames before and behind the window it takes where it does not pad."""
    columns, before, step = WIDTH, 0, 1
    for _, kernel, stride, dilation, left, right in layers:
        columns = (columns + left + right - (kernel - 1) * dilation - 1) // stride + 1
        before, step = before + left * step, step * stride
    needed = columns
    for _, kernel, stride, dilation, *_ in reversed(layers):
        needed = (needed - 1) * stride + (kernel - 1) * dilation + 1
    context = (0, 0) if padded else (before, max(0, needed - WIDTH - before))
    net, channels = Net(), 3
    h = net.input([1, channels, WIDTH + sum(context)])
    for op, kernel, stride, dilation, left, right in layers:
        attrs: dict[str, Any] = {"strides": [stride], "pads": [left, right] if padded else [0, 0]}
        if op == "Conv":
            h = net.op("Relu", net.conv(h, channels, 4, kernel, dilations=[dilation], **attrs))
            channels = 4
        elif op == "Pad":
            h = net.op("Pad", h, net.const([0, 0, left, 0, 0, right] if padded else [0] * 6))
        else:
            h = net.op(op, h, kernel_shape=[kernel], **attrs)
    return net.model(HEADS[head](net, h, channels, columns)), context


HEADS: dict[str, Any] = {
    "none": lambda net, h, channels, columns: h,
    "mean": lambda net, h, channels, columns: net.op("Flatten", net.op("GlobalAveragePool", h)),
    "dense": lambda net, h, channels, columns: net.op(
        "Gemm", net.op("Flatten", h), net.weight(3, channels * columns), transB=1
    ),
}


@pytest.mark.parametrize("hop", [1, 4, 6, 60])
@pytest.mark.parametrize(("name", "head"), [(n, h) for i, n in enumerate(CHAINS) for h in [list(HEADS)[i % 3], "mean"]])
def test_it_is_the_network_without_padding_on_a_wider_window(check: Check, name: str, head: str, hop: int) -> None:
    layers = CHAINS[name]
    expected, context = chain(layers, head, False)
    assert context[0] + context[1] > 0
    check(chain(layers, head, True)[0], window=WIDTH, hop=hop, expected=expected, context=context, **SIGNAL)


def residual(padded: bool) -> bytes:
    net = Net()
    x = net.input([1, 4, WIDTH if padded else WIDTH + 4])
    h = net.conv(x, 4, 4, 3, pads=[1, 1] if padded else [0, 0])
    around = (0, WIDTH) if padded else (1, -1)
    x = net.op("Slice", x, net.const([around[0]]), net.const([around[1]]), net.const([2]))
    h = net.op("Relu", net.op("Add", x, h))
    g = net.conv(h, 4, 4, 3, pads=[1, 1] if padded else [0, 0])
    h = net.op("Slice", h, net.const([around[0]]), net.const([around[1]]), net.const([2]))
    return net.model(net.op("ReduceMean", net.op("Add", h, g), axes=[2], keepdims=0))


@pytest.mark.parametrize("hop", [2, 5])
def test_branches_meet_at_the_same_frames(check: Check, hop: int) -> None:
    check(residual(True), window=WIDTH, hop=hop, expected=residual(False), context=(2, 2), **SIGNAL)


def chomped(padded: bool) -> bytes:
    net = Net()
    h = net.conv(net.input([1, 3, WIDTH if padded else WIDTH + 4]), 3, 4, 5, pads=[4, 4] if padded else [0, 0])
    h = net.op("Slice", h, net.const([0]), net.const([WIDTH]), net.const([2]))
    return net.model(net.op("GlobalMaxPool", h))


def test_columns_cut_off_are_not_waited_for(check: Check) -> None:
    check(chomped(True), window=WIDTH, hop=3, expected=chomped(False), context=(4, 0), **SIGNAL)
    assert runnel.inspect(chomped(True), window=WIDTH, hop=3, mode="reuse", padding="signal").latency_frames == 0


def image(padded: bool) -> bytes:
    """Padding of the other axis stays what it is."""
    net = Net()
    h = net.op("Unsqueeze", net.input([1, 12, 6] if padded else [1, 14, 6]), net.const([1]))
    h = net.op("Relu", net.conv(h, 1, 4, [3, 3], pads=[int(padded), 1, int(padded), 1]))
    return net.model(net.op("Gemm", net.op("Flatten", h), net.weight(3, 12 * 6 * 4), transB=1))


def test_other_axes_keep_their_padding(check: Check) -> None:
    check(image(True), window=12, hop=2, expected=image(False), context=(1, 1), **SIGNAL)


def test_it_waits_for_the_right_context_and_computes_each_column_once() -> None:
    said = runnel.inspect(chain(CHAINS["same"], "dense", True)[0], window=WIDTH, hop=2, mode="reuse", padding="signal")
    assert said.latency_frames == 3
    assert said.receptive_field == WIDTH + 6
    assert said.modes["padding"]["value"] == "signal" and len(said.modes["padding"]["nodes"]) == 2
    columns = 2 * (3 * 4 * 3 + 4 * 4 * 5)
    assert said.macs["per_hop_reuse"] == columns + 3 * 4 * WIDTH < said.macs["per_hop_exact"]


def compiled(tmp_path: Path, model: bytes, **options: Any) -> Any:
    return runnel.compile(model, tmp_path / "model.rnl", window=WIDTH, hop=8, **{"mode": "reuse", **options})


def test_the_deviation_from_zero_padding_is_in_the_bundle(tmp_path: Path) -> None:
    model, x = chain(CHAINS["same"], "mean", True)[0], signal(3, WIDTH + 400, 32.0, 5)[None]
    info = compiled(tmp_path, model, padding="signal", calibration=x, reuse_threshold=1.0)
    window = info.manifest["window"]
    offline = Offline(model)
    name = offline.given[0]
    wanted = np.stack([offline({"x": x[:, :, i : i + WIDTH]})[name] for i in range(0, 401, 8)])  # type: ignore[index]
    for backend in ("onnxruntime", "native"):
        got = play(runnel.load(info.path, backend=backend).stream(), {"x": x}, {"x": 2}, [30])[name]
        error = (np.sqrt(((got - wanted) ** 2).mean(0)) / np.ptp(wanted, 0)).mean()
        assert error > 1e-3 and abs(float(error) - window["nrmse"]) < 1e-4
    assert window["mode"] == "reuse" and list(info.manifest["modes"]["used"]) == ["padding"]
    with pytest.raises(Refused, match="NRMSE of .* above the threshold of 0.0001"):
        compiled(tmp_path, model, padding="signal", calibration=x, reuse_threshold=0.0001)


@pytest.mark.parametrize(("name", "hop"), [("acc", 160), ("ppg", 64), ("ppg", 10)])
def test_the_run_counts_the_multiply_adds_that_it_was_said_to_need(tmp_path: Path, name: str, hop: int) -> None:
    model = NETWORKS[name](0)
    _, channels, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    options = {
        "window": width,
        "hop": hop,
        "mode": "reuse",
        "padding": "signal",
        "reuse_threshold": 9,
        "backend": "native",
    }
    info = runnel.compile(model, tmp_path / "model.rnl", **options)
    stream = runnel.load(info.path, backend="native").stream()
    x = signal(channels, width + 40 * hop, 32.0)[None]
    stream.push(x[:, :, : width + 10 * hop])
    before = stream.counters["macs"]
    stream.push(x[:, :, width + 10 * hop :])
    counted = (stream.counters["macs"] - before) / 30
    assert counted == pytest.approx(info.manifest["macs"]["per_hop_reuse"], rel=0.1)


def test_without_padding_it_changes_nothing(tmp_path: Path) -> None:
    net = Net()
    model = net.model(net.op("ReduceMax", net.conv(net.input([1, 3, WIDTH]), 3, 4, 5), axes=[2], keepdims=0))
    info = compiled(tmp_path, model, padding="signal")
    assert info.manifest["modes"] == {} and info.manifest["window"]["nrmse"] is None


def test_it_needs_a_window_that_is_reused(tmp_path: Path) -> None:
    model = chain(CHAINS["same"], "mean", True)[0]
    with pytest.raises(InputError, match="mode=reuse"):
        compiled(tmp_path, model, padding="signal", mode="exact")
    with pytest.raises(InputError, match="no padding 'mirror'"):
        compiled(tmp_path, model, padding="mirror")


def reflected(net: Net, x: str) -> str:
    return str(net.conv(net.op("Pad", x, net.const([0, 0, 1, 0, 0, 1]), mode="reflect"), 3, 4, 3))


def padded_with_ones(net: Net, x: str) -> str:
    return str(net.conv(net.op("Pad", x, net.const([0, 0, 1, 0, 0, 1]), net.const(np.float32(1))), 3, 4, 3))


def joined_zeros(net: Net, x: str) -> str:
    return str(net.conv(net.op("Concat", net.const(np.zeros((1, 3, 2), np.float32)), x, axis=2), 3, 4, 3))


def behind_recurrence(net: Net, x: str) -> str:
    y = net.recurrent("GRU", net.op("Transpose", x, perm=[2, 0, 1]), 3, 4)
    y = net.op("Transpose", net.op("Squeeze", y, net.const([1])), perm=[1, 2, 0])
    return str(net.conv(y, 4, 4, 3, pads=[1, 1]))


def behind_softmax(net: Net, x: str) -> str:
    return str(net.conv(net.op("Softmax", x, axis=2), 3, 4, 3, pads=[1, 1]))


REFUSED = {
    reflected: "something else than zeros",
    padded_with_ones: "something else than zeros",
    joined_zeros: "by joining zeros",
    behind_recurrence: "as a whole",
    behind_softmax: "as a whole",
}


@pytest.mark.parametrize(("build", "reason"), REFUSED.items())
def test_what_has_no_neighbours_is_refused(build: Any, reason: str) -> None:
    net = Net()
    model = net.model(build(net, net.input([1, 3, WIDTH])))
    onnx.checker.check_model(onnx.load_from_string(model))
    with pytest.raises(Refused, match=reason):
        analyse(load(model), window=WIDTH, hop=2, **SIGNAL)
