"""Multiply-adds of frame nodes, as a person would count them: padding counts, additions of a pool or a bias do not."""

from __future__ import annotations

from math import prod

import numpy as np

from runnel.compiler.lowering.frame import FrameNode

GATES = {"gru_sequence": 3, "lstm_sequence": 4, "rnn_sequence": 1}


def macs(node: FrameNode) -> int:
    """Of one output frame."""
    out = prod(node.output.shape)
    first, weight = (*node.inputs, None, None)[:2]
    if first is None or weight is None:
        return 0
    if node.op == "matmul_blocks":
        return out * prod(weight.shape[:2])
    if node.op in ("comb_product", "picked_product"):
        return int(node.attrs.get("positions", 1)) * int(np.prod(weight.shape))
    if node.op == "conv":
        return out * prod(weight.shape[1:])
    if node.op == "conv_transpose" and isinstance(weight, np.ndarray):
        return prod(first.shape[2:]) * weight.size
    if node.op == "pick" and len(node.inputs) > 2 and node.inputs[2] is not None:
        return out * int(node.inputs[2].shape[1])
    if node.op == "matmul":
        return out * (first.shape[-1] if first.shape else 1)
    if node.op in GATES:
        hidden = node.output.shape[-1]
        return out * GATES[node.op] * hidden
    return 0
