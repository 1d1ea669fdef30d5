"""Normalisation, reductions and softmax over axes that are not time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.streaming.ir import Weights
from runnel.compiler.streaming.registry import MixesTime, Refusal, rule
from runnel.compiler.streaming.rules.norm_over_time import layer_norm_over_time, lp_norm_over_time
from runnel.compiler.streaming.rules.totals import WAYS, extreme_frame, total

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

REDUCTIONS = (
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin",
)  # fmt: skip


@rule("BatchNormalization")
def batch_normalization(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    if node.attrs.get("training_mode") or any(node.outputs[1:]):
        raise Refusal("is in training mode and normalises by the batch", "export the model in inference mode")
    if x.axis == 1:
        raise Refusal("has another scale for every frame", "move the time axis off axis 1 before it")
    parameters = [a.constant(node, i, "parameter") for i in range(1, 5)]
    return [a.pointwise(node, [x, *parameters], x.axis)]


@rule("LayerNormalization", "RMSNormalization")
def layer_normalization(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    axis = int(node.attrs.get("axis", -1)) % len(x.shape)
    if any(node.outputs[1:]):
        raise Refusal("gives its statistics as outputs", "export the model in inference mode")
    if x.axis >= axis:
        return layer_norm_over_time(a, node, x, axis)
    scale, bias = (a.constant(node, i, "parameter") for i in (1, 2))
    for parameter in (scale, bias):
        at = x.axis - (len(x.shape) - (parameter.ndim if parameter is not None else 0))
        if parameter is not None and at >= 0 and parameter.shape[at] != 1:
            raise Refusal("has another scale for every frame", "export the model without absolute positions")
    return [a.pointwise(node, [x, scale, bias], x.axis)]


@rule("Softmax", "LogSoftmax", "Hardmax", "LpNormalization")
def softmax(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    if int(node.attrs.get("axis", -1)) % len(x.shape) == x.axis:
        if node.op == "LpNormalization":
            return lp_norm_over_time(a, node, x)
        if node.op == "Softmax" and np.dtype(x.dtype).kind == "f":
            return [Weights(x, node)]
        raise MixesTime("normalises over the whole of time", "attention over time needs a causal or sliding mask")
    return [a.pointwise(node, [x], x.axis)]


@rule(*REDUCTIONS)
def reduction(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    rank = len(x.shape)
    if node.op in ("ArgMax", "ArgMin"):
        axes = [int(node.attrs.get("axis", 0)) % rank]
        given: np.ndarray | None = None
    else:
        given = a.constant(node, 1, "list of axes")
        listed = node.attrs.get("axes", given)
        if (listed is None or not len(listed)) and not node.attrs.get("noop_with_empty_axes"):
            listed = list(range(rank))
        axes = [int(v) % rank for v in (listed if listed is not None else [])]
    if x.axis in axes and node.op in WAYS:
        return [total(a, node, x, axes, node.op)]
    if x.axis in axes:
        return [extreme_frame(a, node, x)]
    keep = bool(node.attrs.get("keepdims", 1))
    axis = x.axis if keep else x.axis - sum(v < x.axis for v in axes)
    return [a.pointwise(node, [x] if given is None else [x, given], axis)]
