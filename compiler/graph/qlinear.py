"""Ops on codes, written out as the arithmetic that onnxruntime does for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from runnel.compiler.graph.model import Node
from runnel.compiler.graph.quantised import FLOAT, INT32, Codes, Ending, Rewriter, Weights, centred, fits, plain_weights

Expansion = Callable[[Rewriter, Node], bool]
EXPANSIONS: dict[tuple[str, str], Expansion] = {}
MICROSOFT = "com.microsoft"


def expands(op: str, domain: str = MICROSOFT) -> Callable[[Expansion], Expansion]:
    """Register the function that writes an op out; it returns whether it did."""

    def register(function: Expansion) -> Expansion:
        EXPANSIONS[domain, op] = function
        return function

    return register


def scalar(r: Rewriter, node: Node, i: int, default: Any = None) -> np.ndarray | None:
    """Input i where it is a constant of one element."""
    if i >= len(node.inputs) or not node.inputs[i]:
        return None if default is None else np.array(default)
    value = r.constant(node, i)
    return value.reshape(()) if value is not None and value.size == 1 else None


def tensor(r: Rewriter, node: Node, i: int) -> Codes | None:
    """Inputs i, i + 1, i + 2: codes, scale, zero."""
    scale, zero = scalar(r, node, i + 1), scalar(r, node, i + 2, np.uint8(0))
    return None if scale is None or zero is None else Codes(node.inputs[i], scale, zero)


def result(r: Rewriter, node: Node, i: int) -> Ending | None:
    """Inputs i and i + 1: scale and zero of the node's output."""
    scale, zero = scalar(r, node, i), scalar(r, node, i + 1, np.uint8(0))
    return None if scale is None or zero is None else Ending([], node, scale, zero)


def dequantised(r: Rewriter, node: Node, x: Codes) -> str:
    return r.node(node, "DequantizeLinear", [x.name, r.const(x.scale), r.const(x.zero)])


def rounded(r: Rewriter, node: Node, value: str, scale: Any, zero: np.ndarray) -> None:
    """The node's output: value / scale rounded half to even, plus zero."""
    r.node(node, "QuantizeLinear", [value, r.const(scale, np.float32), r.const(zero)], node.outputs[0])


def constant_weights(r: Rewriter, node: Node, i: int, axis: int) -> Weights | None:
    codes, scale, zero = (r.constant(node, k) for k in (i, i + 1, i + 2))
    if codes is None or scale is None or (zero is None and i + 2 < len(node.inputs) and node.inputs[i + 2]):
        return None
    return plain_weights(codes, scale.reshape(-1), np.zeros((), codes.dtype) if zero is None else zero, axis)


@expands("QLinearConv", "")
def conv(r: Rewriter, node: Node) -> bool:
    x, w, end = tensor(r, node, 0), constant_weights(r, node, 3, 0), result(r, node, 6)
    bias = r.constant(node, 8)
    if x is None or w is None or end is None or not fits(w, 0) or (bias is None and len(node.inputs) > 8):
        return False
    shape = (-1, *(1,) * (w.codes.ndim - 2))
    names = [x.name, r.const(w.codes), r.const(x.zero), r.const(w.zero)]
    total = r.node(node, "ConvInteger", names, **node.attrs)
    if bias is not None:
        total = r.node(node, "Add", [total, r.const(bias.reshape(shape))])
    value = r.node(node, "Cast", [total], to=FLOAT)
    multiplier = x.scale * w.scale / end.scale
    r.quantised(node, value, multiplier.reshape(shape) if multiplier.size > 1 else multiplier.reshape(()), end)
    return True


def _product(r: Rewriter, node: Node, x: Codes, y: tuple[str, np.ndarray, np.ndarray], end: Ending | None,
             bias: np.ndarray | None, alpha: float = 1.0) -> bool:  # fmt: skip
    name, scale, zero = y
    total = r.node(node, "MatMulInteger", [x.name, name, r.const(x.zero), r.const(zero)])
    if bias is not None:
        total = r.node(node, "Add", [total, r.const(bias)])
    value = r.node(node, "Cast", [total], to=FLOAT)
    multiplier = np.float32(alpha) * x.scale * scale
    if end is None:
        r.node(node, "Mul", [value, r.const(multiplier, np.float32)], node.outputs[0])
    else:
        r.quantised(node, value, multiplier / end.scale, end)
    return True


@expands("QLinearMatMul", "")
def matmul(r: Rewriter, node: Node) -> bool:
    x, end = tensor(r, node, 0), result(r, node, 6)
    if x is None or end is None:
        return False
    if node.inputs[3] in r.graph.constants:
        w = constant_weights(r, node, 3, len(r.graph.constants[node.inputs[3]].shape) - 1)
        if w is None or w.codes.ndim != 2 or not fits(w, 1):
            return False
        scale = w.scale if w.scale.size > 1 else w.scale.reshape(())
        return _product(r, node, x, (r.const(w.codes), scale, w.zero), end, None)
    y = tensor(r, node, 3)
    return y is not None and _product(r, node, x, (y.name, y.scale, y.zero), end, None)


@expands("QGemm")
def gemm(r: Rewriter, node: Node) -> bool:
    """a, a scale, a zero, b, b scale, b zero, c (int32), y scale, y zero; without the last two the result is float."""
    turned = bool(node.attrs.get("transB"))
    x, w = tensor(r, node, 0), constant_weights(r, node, 3, 0 if turned else 1)
    bias = r.constant(node, 6)
    alpha = float(node.attrs.get("alpha", 1.0))
    if x is None or w is None or node.attrs.get("transA") or (bias is None and len(node.inputs) > 6 and node.inputs[6]):
        return False
    end = result(r, node, 7) if len(node.inputs) > 7 and node.inputs[7] else None
    codes = np.ascontiguousarray(w.codes.T if turned else w.codes)
    scale = w.scale if w.scale.size > 1 else w.scale.reshape(())
    if (end is None and len(node.inputs) > 7) or not fits(Weights(codes, w.scale, w.zero), 1):
        return False
    return _product(r, node, x, (r.const(codes), scale, w.zero), end, None if bias is None else bias.reshape(-1), alpha)


@expands("QLinearAdd")
def add(r: Rewriter, node: Node) -> bool:
    """a · (sa / sc) + (zc - za · (sa / sc) - zb · (sb / sc)) + b · (sb / sc), in onnxruntime's order."""
    a, b, end = tensor(r, node, 0), tensor(r, node, 3), result(r, node, 6)
    if a is None or b is None or end is None:
        return False
    ratios = [x.scale / end.scale for x in (a, b)]
    fixed = np.float32(end.zero) - (ratios[0] * np.float32(a.zero) + ratios[1] * np.float32(b.zero))
    terms = []
    for x, ratio in zip((a, b), ratios, strict=True):
        terms.append(r.node(node, "Mul", [r.node(node, "Cast", [x.name], to=FLOAT), r.const(ratio, np.float32)]))
    value = r.node(node, "Add", [terms[0], r.const(fixed, np.float32)])
    rounded(r, node, r.node(node, "Add", [value, terms[1]]), 1.0, np.zeros((), end.zero.dtype))
    return True


@expands("QLinearMul")
def mul(r: Rewriter, node: Node) -> bool:
    a, b, end = tensor(r, node, 0), tensor(r, node, 3), result(r, node, 6)
    if a is None or b is None or end is None:
        return False
    value = r.node(node, "Mul", [centred(r, node, a), centred(r, node, b)])
    r.quantised(node, value, a.scale * b.scale / end.scale, end)
    return True


def _function(op: str) -> Expansion:
    def expand(r: Rewriter, node: Node) -> bool:
        x, end = tensor(r, node, 0), result(r, node, 3)
        if x is None or end is None:
            return False
        attrs = {k: v for k, v in node.attrs.items() if k in ("alpha", "axis")}
        value = r.node(node, op, [dequantised(r, node, x)], **attrs)
        rounded(r, node, value, end.scale, end.zero)
        return True

    return expand


expands("QLinearSigmoid")(_function("Sigmoid"))
expands("QLinearLeakyRelu")(_function("LeakyRelu"))


@expands("QLinearSoftmax")
def softmax(r: Rewriter, node: Node) -> bool:
    """Opset 13's softmax, over one axis."""
    return int(node.attrs.get("opset", 13)) >= 13 and _function("Softmax")(r, node)


@expands("QLinearAveragePool")
def average_pool(r: Rewriter, node: Node) -> bool:
    x, end = tensor(r, node, 0), result(r, node, 3)
    if x is None or end is None or node.attrs.get("channels_last"):
        return False
    r.sums += 1  # onnxruntime rounds its average in float32, which differs where an average lies between two codes
    attrs = {k: v for k, v in node.attrs.items() if k != "channels_last"}
    r.quantised(node, r.node(node, "AveragePool", [centred(r, node, x)], **attrs), x.scale / end.scale, end)
    return True


@expands("QLinearGlobalAveragePool")
def global_average_pool(r: Rewriter, node: Node) -> bool:
    x, end = tensor(r, node, 0), result(r, node, 3)
    if x is None or end is None or node.attrs.get("channels_last"):
        return False
    r.sums += 1
    r.quantised(node, r.node(node, "GlobalAveragePool", [centred(r, node, x)]), x.scale / end.scale, end)
    return True


@expands("QLinearConcat")
def concat(r: Rewriter, node: Node) -> bool:
    end = result(r, node, 0)
    parts = [tensor(r, node, i) for i in range(2, len(node.inputs), 3)]
    if end is None or any(p is None for p in parts):
        return False
    names = []
    for part in parts:
        assert part is not None
        if part.scale == end.scale and part.zero == end.zero:
            names.append(part.name)
            continue
        steps = [r.const(end.scale), r.const(end.zero)]
        names.append(r.node(node, "QuantizeLinear", [dequantised(r, node, part), *steps]))
    r.node(node, "Concat", names, node.outputs[0], axis=int(node.attrs["axis"]))
    return True


@expands("QuantizeLinear")
@expands("DequantizeLinear")
def standard(r: Rewriter, node: Node) -> bool:
    """Onnxruntime's own forms of the two, where the standard ones do the same."""
    scale, zero = r.constant(node, 1), r.constant(node, 2)
    if scale is None or (zero is not None and str(zero.dtype) not in ("int8", "uint8", "int32")):
        return False
    attrs = {k: v for k, v in node.attrs.items() if k == "axis"}
    r.node(node, node.op, list(node.inputs), node.outputs[0], **attrs)
    return True


@expands("MatMulIntegerToFloat")
def matmul_to_float(r: Rewriter, node: Node) -> bool:
    """a, b, a scale, b scale, a zero, b zero, bias (float)."""
    names = [*node.inputs, *[""] * (7 - len(node.inputs))]
    scale_a, scale_b = (r.graph.constants.get(n) for n in names[2:4])
    if scale_a is None or scale_b is None:
        return False
    total = r.node(node, "MatMulInteger", [names[0], names[1], names[4], names[5]])
    value = r.node(node, "Cast", [total], to=FLOAT)
    multiplier = r.const(scale_a.reshape(-1) * scale_b.reshape(-1), np.float32)
    if not names[6]:
        r.node(node, "Mul", [value, multiplier], node.outputs[0])
        return True
    r.node(node, "Add", [r.node(node, "Mul", [value, multiplier]), names[6]], node.outputs[0])
    return True


__all__ = ["EXPANSIONS", "INT32"]
