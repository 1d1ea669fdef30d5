"""Networks as exporters write them: compiled, loaded, pushed in pieces, and compared with onnxruntime on the whole."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import runnel
from runnel.errors import Refused

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "streaming"))

from nets import Net

FAR = 2**63 - 1


def piece(net: Net, x: str, start: int, stop: int, axis: int) -> str:
    return str(net.op("Slice", x, *(net.const([v]) for v in (start, stop, axis, 1))))


def prelu(net: Net, x: str) -> str:
    return str(net.op("PRelu", x, net.const(np.full((1, 1), 0.25))))


def group_norm(net: Net, x: str, channels: int) -> str:
    h = net.op("Reshape", x, net.const([0, 1, -1]))
    h = net.op("InstanceNormalization", h, net.const([1.0]), net.const([0.0]))
    h = net.op("Reshape", h, net.op("Shape", x))
    return str(net.op("Add", net.op("Mul", h, net.weight(channels, 1)), net.weight(channels, 1)))


def layer_norm(net: Net, x: str, channels: int) -> str:
    h = net.op("LayerNormalization", net.op("Transpose", x, perm=[0, 2, 1]), net.weight(channels), net.weight(channels))
    return str(net.op("Transpose", h, perm=[0, 2, 1]))


def separator(norm: Callable[[Net, str, int], str]) -> bytes:
    """Conv-TasNet: an encoder, causal blocks whose padding is cut off, a mask for each of two voices, one decoder."""
    net = Net(3)
    x = net.input([1, "T"])
    w = net.op("Relu", net.conv(net.op("Unsqueeze", x, net.const([1])), 1, 8, 16, strides=[8], bias=False))
    y = net.conv(norm(net, w, 8), 8, 8, 1)
    for d in (1, 2):
        h = norm(net, prelu(net, net.conv(y, 8, 12, 1)), 12)
        h = piece(net, net.conv(h, 12, 12, 3, group=12, dilations=[d], pads=[2 * d, 2 * d]), 0, -2 * d, 2)
        y = net.op("Add", y, net.conv(norm(net, prelu(net, h), 12), 12, 8, 1))
    mask = net.conv(y, 8, 16, 1)
    target = net.op("Concat", net.const([1, 2, 8]), net.length(mask, 2), axis=0)
    mask = net.op("Softmax", net.op("Reshape", mask, target), axis=1)
    voices = net.op("Reshape", net.op("Mul", net.op("Unsqueeze", w, net.const([1])), mask), net.const([2, 8, -1]))
    return net.model(net.op("Reshape", net.conv_transpose(voices, 8, 1, 16, strides=[8]), net.const([1, 2, -1])))


def gated(net: Net, x: str) -> str:
    a, b = net.op("Split", x, outputs=2, axis=1)
    return str(net.op("Mul", a, net.op("Sigmoid", b)))


def denoiser() -> bytes:
    """Demucs: two levels of strided convolutions around an LSTM, skips cut to what the decoder gives."""
    net = Net(4)
    y, skips = net.input([1, 1, "T"]), []
    for cin, cout in ((1, 4), (4, 8)):
        y = gated(net, net.conv(net.op("Relu", net.conv(y, cin, cout, 8, strides=[4])), cout, 2 * cout, 1))
        skips.append(y)
    t = net.op("Transpose", y, perm=[2, 0, 1])
    shape = net.op("Concat", net.const([1]), net.length(t, 1), net.const([8]), axis=0)
    zeros = net.op("Expand", net.const(np.zeros((1, 1, 1))), shape)
    weights = [net.weight(1, 32, 8), net.weight(1, 32, 8), net.weight(1, 64)]
    out = net.op("LSTM", t, *weights, "", zeros, zeros, outputs=3, hidden_size=8)[0]
    y = net.op("Transpose", net.op("Squeeze", out, net.const([1])), perm=[1, 2, 0])
    for cin, cout in ((8, 4), (4, 1)):
        skip = net.op("Slice", skips.pop(), net.const([0]), net.length(y, 2), net.const([2]), net.const([1]))
        y = gated(net, net.conv(net.op("Add", y, skip), cin, 2 * cin, 1))
        y = net.conv_transpose(y, cin, cout, 8, strides=[4])
    return net.model(y)


def conformer_attention() -> bytes:
    """Attention in chunks of 4 frames and the chunk before, by a mask of comparisons, and a causal convolution."""
    net = Net(7)
    x = net.input([1, "T", 8])
    n = net.op("Range", net.const(0), net.op("Squeeze", net.length(x, 1), net.const([0])), net.const(1))
    chunk = net.op("Div", n, net.const(4))
    stop = net.op("Mul", net.op("Add", chunk, net.const(1)), net.const(4))
    start = net.op("Mul", net.op("Sub", chunk, net.const(1)), net.const(4))
    key = net.op("Unsqueeze", n, net.const([0]))
    seen = net.op("And", net.op("Less", key, net.op("Unsqueeze", stop, net.const([1]))),
                  net.op("GreaterOrEqual", key, net.op("Unsqueeze", start, net.const([1]))))  # fmt: skip
    hidden = net.op("Not", net.op("Unsqueeze", seen, net.const([0, 1])))
    q, k, v = (
        net.op("Transpose", net.op("Reshape", net.op("MatMul", x, net.weight(8, 8)), net.const([1, -1, 2, 4])),
               perm=[0, 2, 1, 3]) for _ in range(3)
    )  # fmt: skip
    scores = net.op("Div", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), net.const(2.0))
    scores = net.op("Softmax", net.op("Where", hidden, net.const(-np.inf), scores), axis=-1)
    scores = net.op("Where", hidden, net.const(0.0), scores)
    out = net.op("Transpose", net.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = net.op("Add", x, net.op("MatMul", net.op("Reshape", out, net.const([1, -1, 8])), net.weight(8, 8)))
    h = net.op("Pad", net.op("Transpose", y, perm=[0, 2, 1]), net.const([0, 0, 6, 0, 0, 0]), net.const(0.0))
    return net.model(net.op("Add", y, net.op("Transpose", net.conv(h, 8, 8, 7, group=8), perm=[0, 2, 1])))


def speaker_embedding() -> bytes:
    """x-vector: a TDNN, the mean and unbiased deviation over time, a dense layer; one answer at the end."""
    net = Net(8)
    y = net.input([1, 6, "T"])
    for cin, d in ((6, 1), (8, 2)):
        y = net.op("Relu", net.conv(y, cin, 8, 3, dilations=[d], pads=[2 * d, 0]))
    apart = net.op("Sub", y, net.op("ReduceMean", y, axes=[2]))
    number = net.op("Cast", net.op("Gather", net.op("Shape", y), net.const(2), axis=0), to=1)
    spread = net.op("ReduceMean", net.op("Mul", apart, apart), axes=[2], keepdims=0)
    spread = net.op("Div", net.op("Mul", spread, number), net.op("Sub", number, net.const(1.0)))
    pooled = net.op("Concat", net.op("ReduceMean", y, axes=[2], keepdims=0), net.op("Sqrt", spread), axis=1)
    return net.model(net.op("Gemm", pooled, net.weight(4, 16), net.weight(4), transB=1))


def video_classifier() -> bytes:
    """A temporal shift module: channels of the next and the last frame, images as a batch, the mean at the end."""
    net = Net(13)
    x = net.input(["T", 3, 8, 8])
    y = net.op("Relu", net.conv(x, 3, 8, [3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))
    z = net.op("Reshape", y, net.const([1, -1, 8, 4, 4]))
    ahead, back = np.zeros(10, np.int64), np.zeros(10, np.int64)
    ahead[6] = back[1] = 1
    parts = [net.op("Pad", piece(net, piece(net, z, 1, FAR, 1), 0, 2, 2), net.const(ahead), net.const(0.0)),
             net.op("Pad", piece(net, piece(net, z, 0, -1, 1), 2, 4, 2), net.const(back), net.const(0.0)),
             piece(net, z, 4, FAR, 2)]  # fmt: skip
    shifted = net.op("Reshape", net.op("Concat", *parts, axis=2), net.const([-1, 8, 4, 4]))
    y = net.op("Relu", net.op("Add", y, net.conv(shifted, 8, 8, [3, 3], pads=[1, 1, 1, 1])))
    y = net.op("Gemm", net.op("Flatten", net.op("GlobalAveragePool", y)), net.weight(5, 8), net.weight(5), transB=1)
    return net.model(y, net.op("ReduceMean", y, axes=[0]))


MODELS: dict[str, tuple[Callable[[], bytes], tuple[int, ...]]] = {
    "separator": (lambda: separator(layer_norm), (16, 39, 120)),
    "denoiser": (denoiser, (44, 91)),
    "conformer": (conformer_attention, (1, 4, 21)),
    "speaker": (speaker_embedding, (2, 25)),
    "video": (video_classifier, (1, 9)),
}


@pytest.mark.parametrize("name", MODELS)
def test_streams_what_onnxruntime_says_of_the_whole(name: str, tmp_path: Path) -> None:
    make, lengths = MODELS[name]
    model, rng = make(), np.random.default_rng(1)
    runnel.compile(model, tmp_path / "m.rnl")
    offline = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    for backend in ("native", "onnxruntime"):
        program = runnel.load(tmp_path / "m.rnl", backend=backend)
        (port,) = program.inputs
        assert port.axis is not None
        for length in lengths:
            shape: list[Any] = list(port.shape)
            shape[port.axis] = length
            x = rng.standard_normal(shape).astype(np.float32)
            cuts = [np.arange(1, length), np.sort(rng.integers(0, length + 1, 4))]
            for at in cuts:
                stream = program.stream()
                parts = [stream.push(np.ascontiguousarray(p)) for p in np.split(x, at, port.axis)] + [stream.flush()]
                for out, wanted in zip(program.outputs, offline.run(None, {port.name: x}), strict=True):
                    frames = [p[out.name] if isinstance(p, dict) else p for p in parts]
                    got = frames[-1] if out.axis is None else np.concatenate(frames, out.axis)
                    assert got.shape == wanted.shape
                    np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-5 * max(1.0, float(np.abs(wanted).max())))


def test_a_norm_over_the_whole_recording_is_refused_and_runs_in_its_mode(tmp_path: Path) -> None:
    model = separator(group_norm)
    with pytest.raises(Refused) as caught:
        runnel.inspect(model)
    assert [r.modes for r in caught.value.reasons] == [("norm=running",)]
    manifest = runnel.compile(model, tmp_path / "m.rnl", mode="norm=running").manifest
    assert sorted(manifest["backends"]) == ["native", "onnxruntime"]
