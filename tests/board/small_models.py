"""Models that the tests of the binary run, and what they are compiled with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nets import TIME, Net
from quantised_nets import QuantisedNet

import runnel

DENOISER = Path(__file__).resolve().parents[2] / "models" / "denoiser" / "denoiser.onnx"


def gru() -> bytes:
    net = Net(1)
    x = net.input([TIME, 1, 6])
    y, _ = net.recurrent("GRU", x, 6, 16, outputs=2, linear_before_reset=1)
    return net.model(net.op("Squeeze", y, net.const([1])))


def strided() -> bytes:
    net = Net(2)
    h = net.conv(net.input([1, 3, TIME]), 3, 8, 4, strides=[2], pads=[1, 1])
    return net.model(net.conv(net.op("Relu", h), 8, 5, 3, strides=[2], pads=[2, 0]), h)


def windowed() -> bytes:
    net = Net(3)
    h = net.op("Relu", net.conv(net.input([1, 3, 20]), 3, 6, 3))
    return net.model(net.op("ReduceMean", h, axes=[2], keepdims=0))


def int8() -> bytes:
    net = QuantisedNet(4)
    x = net.source([1, 3, TIME])
    y = net.qconv(net.qconv(x, 3, 24, 3, pads=[2, 0], relu=True), 24, 8, 5, pads=[2, 2])
    return net.model(y, dtypes={y: net.kind})


def at_the_end() -> bytes:
    net = Net(5)
    h = net.op("Relu", net.conv(net.input([1, 3, TIME]), 3, 6, 3))
    return net.model(net.op("ReduceMean", h, axes=[2], keepdims=0))


def conditioned() -> bytes:
    net = Net(6)
    x, emb = net.input([1, 3, TIME]), net.input([1, 5], "emb")
    gain = net.op("Unsqueeze", net.op("Gemm", emb, net.weight(5, 4)), net.const([2]))
    return net.model(net.op("Mul", net.conv(x, 3, 4, 3, pads=[1, 1]), gain))


def two_rates() -> bytes:
    net = Net(7)
    a = net.conv(net.input([1, 2, "A"], "audio"), 2, 4, 4, strides=[4])
    v = net.conv(net.input([1, 3, "V"], "video"), 3, 4, 3, pads=[1, 1])
    return net.model(net.op("Add", a, v))


MODELS: dict[str, tuple[Callable[[], bytes | Path], dict[str, Any]]] = {
    "denoiser": (lambda: DENOISER, {}),
    "gru": (gru, {"hop": 4}),
    "strided": (strided, {"hop": 8}),
    "windowed": (windowed, {"window": 20, "hop": 2}),
    "int8": (int8, {"hop": 4}),
    "at-the-end": (at_the_end, {"hop": 4}),
    "conditioned": (conditioned, {"hop": 4}),
    "two-rates": (two_rates, {"rate": {"audio": 100, "video": 25}}),
}


def compiled(folder: Path, name: str, target: str = "host") -> Path:
    """The bundle of a model."""
    make, options = MODELS[name]
    out = folder / f"{name}.rnl"
    if not out.exists():
        model = make()
        if isinstance(model, bytes):
            path = folder / f"{name}.onnx"
            path.write_bytes(model)
            model = path
        runnel.compile(model, out=out, target=target, **options)
    return out
