"""The named mode ``activations``: what is multiplied by weights of few bits is rounded to 8 bits, block by block."""

from __future__ import annotations

from runnel.compiler.graph.rounded import parse
from runnel.compiler.streaming.ir import Pointwise, Stream, StreamGraph, StreamNode
from runnel.compiler.streaming.kinds.rounded import Rounded
from runnel.compiler.streaming.weights import MODE as WEIGHTS

MODE = "activations"


def round_activations(graph: StreamGraph, value: str) -> None:
    """Round what products by weights of 4 or 8 bits read, in place; those of whole numbers of 16 inputs."""
    made: dict[tuple[Stream, int], Stream] = {}
    nodes: list[StreamNode] = []
    names: dict[str, None] = {}
    for node in graph.nodes:
        block = _block(graph, node)
        if block and node.streams[0].frame_shape[-1] % 16 == 0:
            x = node.streams[0]
            if (x, block) not in made:
                rounded = Stream(f"{x.name}/rounded{block}", x.shape, x.dtype, x.fact)
                rounded.node = Rounded(f"{node.name}/rounded", "Rounded", [x], rounded, block=block)
                nodes.append(rounded.node)
                made[x, block] = rounded
            node.inputs[0] = made[x, block]
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


def _block(graph: StreamGraph, node: StreamNode) -> int:
    """The inputs of one scale of a product by weights of 4 or 8 bits; 0 for other nodes."""
    if not isinstance(node, Pointwise) or node.output.dtype != "float32" or not isinstance(node.inputs[0], Stream):
        return 0
    if node.op == "MatMulNBits" and int(node.attrs.get("bits", 4)) in (4, 8):
        return int(node.attrs["block_size"])
    if node.op in ("MatMul", "Gemm") and f"{node.op} '{node.name}'" in graph.mode_nodes.get(WEIGHTS, ()):
        bits, block = parse(graph.modes[WEIGHTS])
        return block if bits in (4, 8) else 0
    return 0
