"""Quantise, dequantise and integer products: element by element, or sums over channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.streaming.ir import Operand
from runnel.compiler.streaming.registry import MixesTime, Refusal, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

_BLOCKS = {1: "matrix", 2: "scales", 3: "zero points", 4: "order", 5: "bias"}


@rule("QuantizeLinear", "DequantizeLinear")
def quantise(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    scale, zero = a.constant(node, 1, "scale"), a.constant(node, 2, "zero point")
    assert scale is not None
    axis = int(node.attrs.get("axis", 1)) % len(x.shape)
    if scale.size > 1 and axis == x.axis:
        raise MixesTime("has another scale for every frame", "quantise with one scale, or one a channel")
    if scale.ndim > 1:
        raise Refusal("has scales for blocks of its input", "quantise activations with one scale, or one a channel")
    return [a.pointwise(node, [x, scale, zero], x.axis)]


@rule("MatMulInteger")
def product(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    operands: list[Operand] = [x, a.constant(node, 1, "matrix")]
    operands += [a.constant(node, i, "zero point") for i in (2, 3)]
    weight = operands[1]
    assert isinstance(weight, np.ndarray)
    if x.axis == len(x.shape) - 1:
        raise MixesTime("sums over time", "use window mode (--window W) for a fixed-window classifier")
    if weight.ndim != 2:
        raise Refusal("multiplies by a batch of constant matrices", "export it with one matrix")
    zero = operands[2]
    if isinstance(zero, np.ndarray) and zero.size > 1:
        raise Refusal("has a zero point for every row", "quantise activations with one zero point")
    return [a.pointwise(node, operands, x.axis)]


@rule("MatMulNBits")
def product_of_blocks(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    if x.axis == len(x.shape) - 1:
        raise MixesTime("sums over time", "use window mode (--window W) for a fixed-window classifier")
    if len(node.inputs) > 4 and node.inputs[4]:
        raise Refusal("takes its inputs in an order of their own (g_idx)", "quantise without act order (desc_act off)")
    if int(node.attrs.get("bits", 4)) not in (2, 4, 8):
        raise Refusal(f"has weights of {node.attrs['bits']} bits", "quantise to 2, 4 or 8 bits")
    if int(node.attrs.get("weight_prepacked", 0)):
        raise Refusal("has weights packed for one kind of processor", "export it with weight_prepacked=0")
    operands: list[Operand] = [x, *(a.constant(node, i, what) for i, what in _BLOCKS.items())]
    return [a.pointwise(node, operands, x.axis)]
