"""Models with mixtures of experts, and what they are by definition, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from quantised_nets import QuantisedNet

MICROSOFT = {"domain": "com.microsoft"}
SIZE, INNER = 32, 48


def scores(net: Any, x: str, experts: int, size: int = SIZE) -> str:
    """Rows of scores, [T, experts]."""
    made = net.op("MatMul", x, net.weight(size, experts, scale=1.0))
    return str(net.op("Reshape", made, net.const(np.array([-1, experts]))))


def layer(net: Any, x: str, experts: int = 5, size: int = SIZE, inner: int = INNER, biases: bool = True,
          **attrs: Any) -> str:  # fmt: skip
    """x plus a MoE of x, [1, T, size]."""
    wide = inner * (2 if attrs.get("swiglu_fusion") else 1)
    names = [x, scores(net, x, experts, size)]
    for out, inside in ((wide, size), (size, inner)):
        names += [net.weight(experts, out, inside, scale=0.3), net.weight(experts, out) if biases else ""]
    names = names if biases else names[:-1]
    return str(net.op("Add", x, net.op("MoE", *names, **attrs, **MICROSOFT)))


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the last axis in bytes, the first lowest."""
    each = 8 // bits
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)]).astype(np.uint8)
    return np.asarray(sum(codes[..., i::each] << (bits * i) for i in range(each)), np.uint8)


def codes(net: QuantisedNet, shape: tuple[int, int, int], bits: int, block: int, zeros: bool) -> tuple[list[str], Any]:
    """Names of codes, scales and zero points, and the weights that they stand for."""
    rng, (experts, outputs, inputs) = net.rng, shape
    steps: tuple[int, ...] = (experts, outputs, inputs // block) if block else (experts, outputs)
    values = rng.integers(0, 1 << bits, shape)
    scales = rng.uniform(0.02, 0.08, steps).astype(np.float32)
    middle = rng.integers(0, 1 << bits, steps) if zeros else np.full(steps, 1 << (bits - 1))
    names = [net.const(packed(values, bits)), net.const(scales), net.const(packed(middle, bits)) if zeros else ""]
    wide = [np.repeat(v, block, -1) if block else v[..., None] for v in (scales, middle)]
    return names, (values - wide[1]) * wide[0].astype(np.float64)


def coded_layer(
    net: QuantisedNet, x: str, bits: int, block: int = 0, zeros: bool = False, gated: bool = False, **attrs: Any
) -> tuple[str, dict[str, np.ndarray]]:
    """x plus a QMoE of x, and its weights as numbers."""
    experts, fused = 4, 2 if attrs.get("swiglu_fusion") else 1
    router = scores(net, x, experts)
    first, w1 = codes(net, (experts, fused * INNER, SIZE), bits, block, zeros)
    second, w2 = codes(net, (experts, SIZE, INNER), bits, block, zeros)
    third, w3 = codes(net, (experts, INNER, SIZE), bits, block, zeros) if gated else (["", "", ""], np.zeros(0))
    b1 = 0.3 * net.rng.standard_normal((experts, fused * INNER)).astype(np.float32)
    names = [x, router, *first[:2], net.const(b1), *second[:2], "", *third[:2], "", first[2], second[2], third[2]]
    while not names[-1]:
        names.pop()
    if block:
        attrs["block_size"] = block
    made = net.op("QMoE", *names, expert_weight_bits=bits, **attrs, **MICROSOFT)
    return str(net.op("Add", x, made)), {"w1": w1, "w2": w2, "w3": w3, "b1": b1}


def mixture(
    x: np.ndarray, scores_: np.ndarray, k: int, weights: dict[str, np.ndarray], kind: str, normalised: bool = True,
    fusion: int = 0, alpha: float = 1.0, beta: float = 0.0, limit: float = np.inf,
) -> np.ndarray:  # fmt: skip
    """Rows of x through the k experts with the highest scores, in float64."""
    out = np.zeros((len(x), weights["w2"].shape[1]))
    for t, row in enumerate(x.astype(np.float64)):
        shares = np.exp(scores_[t] - scores_[t].max())
        chosen: Sequence[int] = np.argsort(-scores_[t], kind="stable")[:k]
        total = shares[chosen].sum() if normalised else shares.sum()
        for e in chosen:
            held = weights["w1"][e] @ row + weights.get("b1", np.zeros((e + 1, 1)))[e]
            gate = weights["w3"][e] @ row if weights.get("w3", np.zeros(0)).size else None
            if kind == "swiglu" or (kind == "silu" and gate is not None):
                if gate is None:
                    held, gate = (held[0::2], held[1::2]) if fusion == 1 else np.split(held, 2)
                held, gate = np.minimum(held, limit), np.clip(gate, -limit, limit)
                held = held / (1 + np.exp(-alpha * held)) * (gate + beta)
            elif kind == "gelu":
                held = 0.5 * held * (1 + np.tanh(math.sqrt(2 / math.pi) * (held + 0.044715 * held**3)))
            elif kind == "silu":
                held = held / (1 + np.exp(-held))
            elif kind == "relu":
                held = np.maximum(held, 0)
            out[t] += shares[e] / total * (weights["w2"][e] @ held + weights.get("b2", np.zeros((e + 1, 1)))[e])
    return out
