"""The named mode ``activations``: what is multiplied by weights of 8 or 4 bits is rounded to 8 bits, block by block; or
what is multiplied by weights of float16 is rounded to float16."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runnel.compiler.graph.rounded import is_half, parse
from runnel.compiler.streaming.ir import Pointwise, Shift, Stream, StreamGraph, StreamNode, Window
from runnel.compiler.streaming.kinds.rounded import HALF, Rounded
from runnel.compiler.streaming.weights import MODE as WEIGHTS
from runnel.compiler.streaming.weights import large_weights

MODE = "activations"


def round_activations(graph: StreamGraph, value: str) -> None:
    """Round what products by weights of few bits read, in place. int8: of 4 or 8 bits, those of whole numbers of 16
    inputs; fp16: of weights that are float16 exactly."""
    made: dict[tuple[Stream, int], Stream] = {}
    nodes: list[StreamNode] = []
    names: dict[str, None] = {}
    for node in graph.nodes:
        block = _block(graph, node) if value == "int8" else _halves(node)
        if block is not None:
            node.inputs[0] = _rounded(node.streams[0], block, made, nodes)
            names[f"{node.op} '{node.name}'"] = None
            for how in ("exact", f"{WEIGHTS}={graph.modes.get(WEIGHTS)}"):
                if (node.op, how) in graph.decided:
                    both = f"{MODE}={value}" if how == "exact" else f"{how}, {MODE}={value}"
                    graph.decided[graph.decided.index((node.op, how))] = (node.op, both)
                    break
        nodes.append(node)
    graph.nodes = nodes
    if names:
        graph.modes = graph.modes | {MODE: value}
        graph.mode_nodes = graph.mode_nodes | {MODE: list(names)}


def _rounded(x: Stream, block: int, made: dict[tuple[Stream, int], Stream], nodes: list[StreamNode]) -> Stream:
    """x rounded, once for all that read it. What only moves in time is rounded before that, so that no history is kept
    as it was."""
    if (x, block) in made:
        return made[x, block]
    result = Stream(f"{x.name}/rounded{block}", x.shape, x.dtype, x.fact)
    name = f"{x.name}/rounded"
    if isinstance(x.node, Shift) and block == HALF and np.float16(x.node.fill) == x.node.fill:
        before = _rounded(x.node.streams[0], block, made, nodes)
        result.node = replace(x.node, name=name, inputs=[before], output=result)
    else:
        result.node = Rounded(name, "Rounded", [x], result, block=block)
    nodes.append(result.node)
    made[x, block] = result
    return result


def _block(graph: StreamGraph, node: StreamNode) -> int | None:
    """The inputs of one scale of a product by weights of 4 or 8 bits; None for other nodes."""
    if not isinstance(node, Pointwise) or node.output.dtype != "float32" or not isinstance(node.inputs[0], Stream):
        return None
    block = 0
    if node.op == "MatMulNBits" and int(node.attrs.get("bits", 4)) in (4, 8):
        block = int(node.attrs["block_size"])
    elif node.op in ("MatMul", "Gemm") and f"{node.op} '{node.name}'" in graph.mode_nodes.get(WEIGHTS, ()):
        bits, size = parse(graph.modes[WEIGHTS])
        block = size if bits in (4, 8) else 0
    return block if block and node.streams[0].frame_shape[-1] % 16 == 0 else None


def _halves(node: StreamNode) -> int | None:
    """HALF for a large product, or convolution over time, by weights that are float16."""
    if not isinstance(node, (Pointwise, Window)) or node.op not in ("MatMul", "Gemm", "Conv"):
        return None
    found = large_weights(node)
    weight = node.inputs[1] if found == [1] else None
    if not isinstance(weight, np.ndarray) or not isinstance(x := node.inputs[0], Stream) or x.dtype != "float32":
        return None
    return HALF if is_half(weight) else None
