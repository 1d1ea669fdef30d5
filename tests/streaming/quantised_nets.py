"""Quantised nets for tests: QDQ as exporters write it, with random scales."""

from __future__ import annotations

from typing import Any

import numpy as np
from nets import TIME, Net


class QuantisedNet(Net):
    """Codes are int8 or uint8; each tensor of codes has a scale and a zero point of its own."""

    def __init__(self, seed: int = 0, kind: str = "int8", opset: int = 17) -> None:
        super().__init__(seed, opset)
        self.kind = kind
        self.steps: dict[str, tuple[str, str]] = {}

    def step(self, scale: float | None = None, zero: int | None = None) -> tuple[str, str]:
        """Names of a scale and a zero point."""
        scale = float(self.rng.uniform(0.01, 0.05)) if scale is None else scale
        low = -128 if self.kind == "int8" else 0
        zero = int(self.rng.integers(low + 90, low + 166)) if zero is None else zero
        return self.const(np.float32(scale)), self.const(np.array(zero), self.kind)

    def quantise(self, x: str, scale: float | None = None, zero: int | None = None) -> str:
        step = self.step(scale, zero)
        codes = str(self.op("QuantizeLinear", x, *step))
        self.steps[codes] = step
        return codes

    def real(self, codes: str) -> str:
        return str(self.op("DequantizeLinear", codes, *self.steps[codes]))

    def source(self, shape: list[Any], scale: float = 0.03) -> str:
        """Codes of a float input."""
        return self.quantise(self.input(shape), scale)

    def weights(self, *shape: int, axis: int | None = 0) -> tuple[str, np.ndarray]:
        """Dequantised int8 weights with one scale, or one along an axis; and the scales."""
        count = 1 if axis is None else shape[axis]
        fan = max(1, int(np.prod(shape)) // (count if axis is not None else shape[0]))
        scale = (self.rng.uniform(0.5, 1.5, count) * 0.02 * fan**-0.5).astype(np.float32)
        codes = self.const(self.rng.integers(-127, 128, shape), "int8")
        if axis is None:
            return str(self.op("DequantizeLinear", codes, self.const(scale[0]), self.const(np.array(0), "int8"))), scale
        zeros = self.const(np.zeros(count), "int8")
        return str(self.op("DequantizeLinear", codes, self.const(scale), zeros, axis=axis)), scale

    def bias(self, x: str, scale: np.ndarray, count: int) -> str:
        """A dequantised int32 bias in steps of the product."""
        step = next(t for t in self.initializers if t.name == self.steps[x][0])
        steps = np.frombuffer(step.raw_data, np.float32) * scale
        codes = self.const(self.rng.integers(-2000, 2000, count), "int32")
        if len(steps) == 1:
            return str(self.op("DequantizeLinear", codes, self.const(steps[0])))
        return str(self.op("DequantizeLinear", codes, self.const(steps), axis=0))

    def qconv(self, x: str, cin: int, cout: int, kernel: int | list[int], relu: bool = False, bias: bool = True,
              per_channel: bool = True, **attrs: Any) -> str:  # fmt: skip
        """Codes to codes."""
        size = [kernel] if isinstance(kernel, int) else kernel
        w, scale = self.weights(cout, cin // attrs.get("group", 1), *size, axis=0 if per_channel else None)
        extra = [self.bias(x, scale, cout)] if bias else []
        h = self.op("Conv", self.real(x), w, *extra, **attrs)
        return self.quantise(self.op("Relu", h) if relu else h)


def qstack(channels: int = 3, **options: Any) -> tuple[QuantisedNet, str]:
    """A net and the codes of an input [1, channels, T]."""
    net = QuantisedNet(**options)
    return net, net.source([1, channels, TIME])


__all__ = ["TIME", "QuantisedNet", "qstack"]
