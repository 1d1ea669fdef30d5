"""Mixtures of experts in one form: MoE of com.microsoft as onnxruntime's CPU provider runs it.

QMoE becomes MoE with weights that know their codes; a gate of its own (fc3) becomes one product with gates and values
interleaved, which is the form of SwiGLU that the provider has. QMoE always weighs experts by a softmax over the chosen
ones there, whatever ``normalize_routing_weights`` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import helper

from runnel.compiler.graph.blocks import DOMAIN, SMALLEST_BLOCK, Blocks
from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.graph.quantised import Rewriter

FIRST, SECOND, GATE = range(3)
MOE, QMOE = (DOMAIN, "MoE"), (DOMAIN, "QMoE")


class Stacked(np.ndarray):
    """Float32 weights (experts, outputs, inputs) that are codes, expert by expert, each of its own width. What is made
    from it is a plain array."""

    blocks: tuple[Blocks, ...] = ()


def stacked(blocks: list[Blocks]) -> Stacked:
    """The weights of experts, from codes (inputs, outputs) of each."""
    made = np.stack([b.real().T for b in blocks]).view(Stacked)
    made.blocks = tuple(blocks)
    return made


def some_of(weights: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """The weights of some experts, with their codes."""
    found = np.asarray(weights)[experts]
    if isinstance(weights, Stacked):
        found = found.view(Stacked)
        found.blocks = tuple(weights.blocks[e] for e in experts)
    return found


def table_name(mixture: str, bits: int) -> str:
    """Of a mixture's experts of one width, where not all have it."""
    return f"{mixture}/{bits}"


def activated(x: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """What an expert makes of its first product, rows of x, by the attributes of its MoE."""
    kind = attrs.get("activation_type", "relu")
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "gelu":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    if kind == "silu":
        return x * _sigmoid(x)
    if kind != "swiglu":
        return x
    limit = float(attrs.get("swiglu_limit", np.inf))
    gate, value = np.minimum(x[:, 0::2], limit), np.clip(x[:, 1::2], -limit, limit)
    alpha, beta = float(attrs.get("activation_alpha", 1.0)), float(attrs.get("activation_beta", 0.0))
    return gate * _sigmoid(alpha * gate) * (value + beta)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -80, 80)))


def experts_in_one_form(graph: Graph) -> bool:
    """Write every mixture of the graph in the one form, in place; whether the offline model has to be written anew."""
    if not any((n.domain, n.op) in (MOE, QMOE) for n in graph.nodes):
        return False
    rewriter = Rewriter(graph)
    changed = False
    for node in graph.nodes:
        new = node
        if (node.domain, node.op) == QMOE:
            new = _coded(rewriter, node) or node
        if (new.domain, new.op) == MOE:
            new = _one_product(rewriter, new) or new
        changed |= new is not node
        rewriter.nodes.append(new)
    graph.nodes = rewriter.nodes
    if changed and DOMAIN not in {o.domain for o in graph.proto.opset_import}:
        graph.proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return changed


def _coded(r: Rewriter, node: Node) -> Node | None:
    """A QMoE as a MoE, None where it is of another kind (the rule says what is in the way)."""
    attrs = dict(node.attrs)
    bits, block = int(attrs.pop("expert_weight_bits", 4)), int(attrs.pop("block_size", 0))
    own = [int(attrs.pop(f"fc{i}_expert_weight_bits", bits)) for i in (1, 2, 3)]
    kind = attrs.pop("quant_type", "int")
    attrs.pop("accuracy_level", None)
    prepacked = int(attrs.pop("weights_prepacked", 0))
    if kind not in ("int", b"int") or prepacked > 0 or any(b not in (2, 4, 8) for b in own) or any(_names(node, 14)):
        return None
    places = {FIRST: (2, 3, 4, 11), SECOND: (5, 6, 7, 12), GATE: (8, 9, 10, 13)}
    names = [node.inputs[0], node.inputs[1]]
    for which, (codes, scales, bias, zeros) in places.items():
        if not _name(node, codes):
            continue
        packed, steps, middles = (r.constant(node, i) if _name(node, i) else None for i in (codes, scales, zeros))
        if packed is None or steps is None:
            return None
        weights = _unpacked_experts(packed, steps, middles, own[which], block)
        if weights is None:
            return None
        names += [_kept(r, weights), _name(node, bias)]
    return Node("MoE", node.name, names, list(node.outputs), attrs | {"normalize_routing_weights": 1}, DOMAIN)


def _unpacked_experts(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, bits: int, block: int
) -> Stacked | None:
    """Packed codes (experts, outputs, bytes) with a scale an output, or one for each block of inputs."""
    if codes.dtype != np.uint8 or codes.ndim != 3 or scales.dtype not in (np.float32, np.float16):
        return None
    middle = 1 << (bits - 1)
    real = _unpacked(codes, bits).astype(np.int16) - middle
    inputs = real.shape[2]
    if scales.ndim == 2 or scales.shape[2] == 1:
        block = max(SMALLEST_BLOCK, -(-inputs // SMALLEST_BLOCK) * SMALLEST_BLOCK)
    if block < SMALLEST_BLOCK or block & (block - 1) and block < inputs:
        return None
    count = -(-inputs // block)
    steps = scales.reshape(*scales.shape[:2], -1).astype(np.float32)
    offsets = None
    if zeros is not None:
        offsets = _unpacked(zeros, bits).reshape(len(codes), -1)
        wide = steps.shape[2] if zeros.ndim == 3 else 1
        offsets = _unpacked(zeros, bits)[..., :wide] if zeros.ndim == 3 else offsets[:, : real.shape[1], None]
        offsets = offsets.astype(np.float32) - middle
    if steps.shape != (*real.shape[:2], count) or (offsets is not None and offsets.shape != steps.shape):
        return None
    found = []
    for e in range(len(real)):
        about = np.ascontiguousarray(real[e].T.astype(np.int8))
        zero = None if offsets is None else np.ascontiguousarray(offsets[e].T)
        found.append(Blocks(bits, block, about, np.ascontiguousarray(steps[e].T), zero))
    return stacked(found)


def _unpacked(data: np.ndarray, bits: int) -> np.ndarray:
    parts = data[..., None] >> (bits * np.arange(8 // bits, dtype=np.uint8)) & ((1 << bits) - 1)
    return parts.reshape(*data.shape[:-1], -1)


def _one_product(r: Rewriter, node: Node) -> Node | None:
    """Gates and values of SwiGLU interleaved in one product; None where they are, or where that is not SwiGLU."""
    attrs = dict(node.attrs)
    kind = attrs.get("activation_type", "relu")
    kind = kind.decode() if isinstance(kind, bytes) else kind
    weights = [r.constant(node, i) for i in (2, 6)]
    fusion = int(attrs.get("swiglu_fusion", 0))
    if weights[0] is None or kind not in ("silu", "swiglu"):
        return None
    if weights[1] is not None and fusion == 0:
        biases = [r.constant(node, i) if _name(node, i) else None for i in (3, 7)]
        order = np.arange(2 * weights[0].shape[1]).reshape(2, -1).T.reshape(-1)
        joined = _joined(weights[0], weights[1], order)
        if kind == "silu":
            attrs |= {"activation_alpha": 1.0, "activation_beta": 0.0}
            attrs.pop("swiglu_limit", None)
    elif weights[1] is None and kind == "swiglu" and fusion == 2:
        half = weights[0].shape[1] // 2
        order = np.arange(2 * half).reshape(2, -1).T.reshape(-1)
        biases = [r.constant(node, 3) if _name(node, 3) else None, None]
        joined = _joined(weights[0], None, order)
    else:
        return None
    if joined is None or any(_name(node, i) and r.constant(node, i) is None for i in (3, 7)):
        return None
    bias = ""
    if any(b is not None for b in biases):
        shape = (len(weights[0]), weights[0].shape[1])
        whole = [np.zeros(shape, np.float32) if b is None else b for b in biases]
        parts = whole if weights[1] is not None else whole[:1]
        bias = r.const(np.concatenate(parts, 1)[:, order])
    names = [*node.inputs[:2], _kept(r, joined), bias, *node.inputs[4:6]]
    return Node("MoE", node.name, names, list(node.outputs),
                attrs | {"activation_type": "swiglu", "swiglu_fusion": 1}, DOMAIN)  # fmt: skip


def _joined(first: np.ndarray, second: np.ndarray | None, order: np.ndarray) -> np.ndarray | None:
    """Rows of both in an order, with their codes where both have some of one kind."""
    both = [first] if second is None else [first, second]
    if all(isinstance(w, Stacked) for w in both):
        found = []
        for parts in zip(*(w.blocks for w in both), strict=True):  # type: ignore[attr-defined]
            kinds = {(b.bits, b.block, b.zeros is None) for b in parts}
            if len(kinds) > 1:
                break
            made, steps = (np.concatenate([getattr(b, f) for b in parts], 1)[:, order] for f in ("codes", "scales"))
            zeros = None
            if parts[0].zeros is not None:
                zeros = np.ascontiguousarray(np.concatenate([b.zeros for b in parts], 1)[:, order])
            made, steps = np.ascontiguousarray(made), np.ascontiguousarray(steps)
            found.append(Blocks(parts[0].bits, parts[0].block, made, steps, zeros))
        else:
            return stacked(found)
    return np.ascontiguousarray(np.concatenate([np.asarray(w) for w in both], 1)[:, order])


def _kept(r: Rewriter, value: np.ndarray) -> str:
    name = r.const(value)
    r.graph.constants[name] = value
    return name


def _name(node: Node, i: int) -> str:
    return node.inputs[i] if i < len(node.inputs) else ""


def _names(node: Node, first: int) -> list[str]:
    return [name for name in node.inputs[first:] if name]
