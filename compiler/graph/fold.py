"""Constant folding, constant branches, dead code, and concrete shapes by running the model once."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from runnel.compiler.graph.model import Graph, Node, Port, _attribute, _constant
from runnel.compiler.graph.unroll import unrolled
from runnel.errors import InputError

FOLD_LIMIT = 64 << 20
MOST_MEMORY = 2 << 30
"""Bytes of all tensors of one run of the offline model."""
WHOLE = ("Attention",)
"""Onnxruntime takes a past only where the present is an output."""
FRAGILE = ("GRU", "LSTM", "RNN", "ConvTranspose")
KNOWN_TYPES = frozenset((1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13))
RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
_LISTS = {"SequenceEmpty"}
OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional


def node_proto(node: Node) -> onnx.NodeProto:
    """The node as ONNX."""
    return helper.make_node(
        node.op, node.inputs, node.outputs, name=node.name, domain=node.domain,
        **{
            k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v
            for k, v in node.attrs.items() if not k.startswith("runnel.")
        },
    )  # fmt: skip


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """An onnxruntime session with one thread, no graph rewriting, and no log on the terminal."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Onnxruntime 1.31 fuses Pad into pools that cannot hold it, and Transpose with MatMul by a vector wrongly.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def fold(graph: Graph, keep: Collection[str] = ()) -> None:
    """Replace every node whose inputs are constants by its value, take constant If branches, write out loops of known
    length, drop dead nodes; in place. keep: ops to leave alone."""
    changed = True
    while changed:
        changed = False
        pending: list[Node] = []
        kept: list[Node] = []
        known = set(graph.constants)
        for node in graph.nodes:
            if node.op == "Identity" and node.inputs[0] in graph.constants:
                graph.constants[node.outputs[0]] = graph.constants[node.inputs[0]]
                known.add(node.outputs[0])
                continue
            if node.op == "If" and node.inputs[0] in graph.constants:
                kept += _take_branch(graph, node)
                changed = True
                continue
            if (turns := unrolled(graph, node, _rename_captured)) is not None:
                kept += turns
                changed = True
                continue
            is_constant = all(not i or i in known for i in node.inputs) and node.op not in (*RANDOM, *_LISTS, *keep)
            if is_constant and node.domain in ("", "ai.onnx") and not _has_subgraph(node):
                pending.append(node)
                known.update(node.outputs)
            else:
                kept.append(node)
        if pending:
            _evaluate(graph, pending)
            changed = True
        graph.nodes = kept
        if not changed:
            break
    _drop_dead(graph)


def fold_node(graph: Graph, node: Node, known: dict[str, np.ndarray]) -> list[np.ndarray | None]:
    """The values of one node of a graph, given those of its inputs; None for an absent output."""
    if node.op in _LISTS:
        return [np.zeros(0, np.float32)]
    outputs = [Port(o, "float32", ()) for o in node.outputs if o]
    small = Graph(graph.name, [node], known, [], outputs, graph.opset, graph.proto)
    fold(small)
    return [small.constants[o] if o else None for o in node.outputs]


def _has_subgraph(node: Node) -> bool:
    return any(isinstance(v, onnx.GraphProto) for v in node.attrs.values())


def _take_branch(graph: Graph, node: Node) -> list[Node]:
    then = bool(np.asarray(graph.constants[node.inputs[0]]).reshape(-1)[0])
    return write_out(graph, node, "then_branch" if then else "else_branch", f"{node.name}/", node.outputs)


def write_out(graph: Graph, node: Node, which: str, prefix: str, results: Sequence[str]) -> list[Node]:
    """The nodes of a branch of an If; its constants go to the graph. prefix: of its names. results: their names."""
    branch = node.attrs[which]
    inner = {o for n in branch.node for o in n.output} | {t.name for t in branch.initializer}
    rename = {n: prefix + n for n in inner}
    for out, name in zip(branch.output, results, strict=True):
        if out.name in inner:
            rename[out.name] = name
    for tensor in branch.initializer:
        graph.constants[rename[tensor.name]] = numpy_helper.to_array(tensor)
    nodes = []
    for proto in branch.node:
        attrs = {a.name: _attribute(a) for a in proto.attribute}
        outputs = [rename.get(o, o) for o in proto.output]
        if proto.op_type == "Constant":
            graph.constants[outputs[0]] = _constant(attrs)
            continue
        for key, value in attrs.items():
            if isinstance(value, onnx.GraphProto):
                attrs[key] = onnx.GraphProto()  # the model itself stays as it was
                attrs[key].CopyFrom(value)
                _rename_captured(attrs[key], rename)
        inputs = [rename.get(i, i) for i in proto.input]
        name = prefix + proto.name if proto.name else ""
        nodes.append(Node(proto.op_type, name, inputs, outputs, attrs, proto.domain))
    for out, name in zip(branch.output, results, strict=True):
        if out.name not in inner:
            nodes.append(Node("Identity", prefix + name, [out.name], [name]))
    return nodes


def _rename_captured(graph: onnx.GraphProto, rename: Mapping[str, str]) -> None:
    """Give what a subgraph reads from around it its new names, in place."""
    own = (
        {o for n in graph.node for o in n.output} | {t.name for t in graph.initializer} | {i.name for i in graph.input}
    )
    outside = {old: new for old, new in rename.items() if old not in own}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = outside.get(name, name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_captured(attribute.g, outside)
    for out in graph.output:
        out.name = outside.get(out.name, out.name)


def _evaluate(graph: Graph, nodes: list[Node]) -> None:
    used = {i for n in nodes for i in n.inputs if i in graph.constants}
    outputs = [o for n in nodes for o in n.outputs if o]
    proto = helper.make_graph(
        [node_proto(n) for n in nodes], "fold", [], [helper.make_empty_tensor_value_info(o) for o in outputs],
        [numpy_helper.from_array(np.asarray(graph.constants[i], order="C"), i) for i in sorted(used)],
    )  # fmt: skip
    model = helper.make_model(proto, opset_imports=graph.proto.opset_import, ir_version=min(graph.proto.ir_version, 10))
    try:
        values = session(model).run(outputs, {})
    except Exception as error:
        raise InputError(
            f"a constant part of {graph.name} cannot be evaluated: {str(error).splitlines()[0][:200]}."
        ) from None
    for name, value in zip(outputs, values, strict=True):
        graph.constants[name] = np.asarray(value)


def _drop_dead(graph: Graph) -> None:
    needed = {p.name for p in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(i for i in node.inputs if i)
            for value in node.attrs.values():
                if isinstance(value, onnx.GraphProto):
                    needed |= captured_names(value)
            node.outputs = _read_outputs(node, needed)
    graph.nodes = kept[::-1]
    graph.constants = {k: v for k, v in graph.constants.items() if k in needed}


def _read_outputs(node: Node, needed: Collection[str]) -> list[str]:
    """The node's outputs without optional ones that nothing reads, which exporters name all the same."""
    if node.domain not in ("", "ai.onnx") or node.op in WHOLE or all(o in needed for o in node.outputs[1:]):
        return node.outputs
    ports = onnx.defs.get_schema(node.op).outputs if onnx.defs.has(node.op) else []
    outputs = [
        "" if i < len(ports) and ports[i].option == OPTIONAL and o not in needed else o
        for i, o in enumerate(node.outputs)
    ]
    while len(outputs) > 1 and not outputs[-1]:
        outputs.pop()
    return outputs


def fold_shapes(graph: Graph, axes: Mapping[str, int], length: int) -> None:
    """Where every shape is fixed (``length`` is the model's only one): shapes become constants, and branches on them
    are taken."""
    while any(n.op in ("Shape", "Size") for n in graph.nodes):
        _, shapes = probe_shapes(graph, axes, [length])
        for node in graph.nodes:
            if node.op == "Shape":
                dims = shapes[node.inputs[0]][0]
                dims = dims[slice(node.attrs.get("start"), node.attrs.get("end"))]
                graph.constants[node.outputs[0]] = np.array(dims, np.int64)
            elif node.op == "Size":
                graph.constants[node.outputs[0]] = np.array(np.prod(shapes[node.inputs[0]][0], dtype=np.int64))
        graph.nodes = [n for n in graph.nodes if n.op not in ("Shape", "Size")]
        fold(graph)


def captured_names(graph: onnx.GraphProto) -> set[str]:
    """Names that a subgraph may read from the graph around it."""
    names = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= captured_names(attribute.g)
    return names


def to_proto(graph: Graph, inputs: list[Port] | None = None, extra_outputs: list[str] | None = None) -> onnx.ModelProto:
    """The normalised graph as ONNX again."""
    ports = inputs if inputs is not None else graph.inputs
    elem = {p.name: helper.np_dtype_to_tensor_dtype(np.dtype(p.dtype)) for p in [*ports, *graph.outputs]}
    outs = [helper.make_tensor_value_info(p.name, elem[p.name], list(p.shape)) for p in graph.outputs]
    outs += [
        helper.make_empty_tensor_value_info(n) for n in extra_outputs or [] if n not in {p.name for p in graph.outputs}
    ]
    proto = helper.make_graph(
        [node_proto(n) for n in graph.nodes], "runnel",
        [helper.make_tensor_value_info(p.name, elem[p.name], list(p.shape)) for p in ports], outs,
        [numpy_helper.from_array(np.asarray(v, order="C"), k) for k, v in graph.constants.items()],
    )  # fmt: skip
    return helper.make_model(
        proto, opset_imports=graph.proto.opset_import, ir_version=max(8, min(graph.proto.ir_version, 10))
    )


def concrete_ports(
    graph: Graph, axes: Mapping[str, int], length: int, per_tick: Mapping[str, int] | None = None
) -> list[Port]:
    """The inputs with the time axis set to ``length`` (times what ``per_tick`` says)."""
    ports = []
    for p in graph.inputs:
        frames = length * (per_tick or {}).get(p.name, 1)
        shape = tuple(frames if axes.get(p.name) == a else d for a, d in enumerate(p.shape))
        ports.append(Port(p.name, p.dtype, shape))
    return ports


def probe_shapes(
    graph: Graph, axes: Mapping[str, int], lengths: list[int], per_tick: Mapping[str, int] | None = None
) -> tuple[int, dict[str, tuple[tuple[int, ...], str]]]:
    """Run the model once at the first of ``lengths`` that it takes; (length, {tensor: (shape, dtype)}).

    Raises InputError with the model's own complaint when it takes none of them.
    """
    wanted = [o for n in graph.nodes for o in n.outputs if o and o not in _lists(n)]
    complaint = ""
    backwards = _slices_backwards(graph)
    if len(lengths) > 1 and backwards:
        lengths = [n for n in lengths if n >= 16]  # onnxruntime too ends the process there
    for length in lengths:
        ports = concrete_ports(graph, axes, length, per_tick)
        for p in ports:
            if not all(isinstance(d, int) for d in p.shape):
                raise InputError(
                    f"input '{p.name}' has a dimension that is neither fixed nor time: {list(p.shape)}; give its shape "
                    f"with --shape {p.name}:SIZE,SIZE,..."
                )
        if complaint := _beyond_memory(length, ports, MOST_MEMORY // 8):
            continue
        feeds = {p.name: np.zeros([int(d or 0) for d in p.shape], p.dtype) for p in ports}
        for port in ports:
            if port.dtype == "float32":
                feeds[port.name] = np.random.default_rng(0).standard_normal(feeds[port.name].shape, np.float32)
        model = to_proto(graph, ports, wanted)
        for out in model.graph.output:
            if out.type.HasField("tensor_type"):
                out.type.tensor_type.ClearField("shape")
        inferred = [] if backwards else _inferred(model)
        if complaint := _beyond_memory(length, inferred) or _without_frames(length, graph, inferred):
            continue
        try:
            values = session(model).run(wanted, feeds) if wanted else []
        except Exception as error:
            complaint = (str(error) or type(error).__name__).splitlines()[0][:300]
            continue
        shapes = {n: (tuple(np.shape(v)), np.asarray(v).dtype.name) for n, v in zip(wanted, values, strict=True)}
        if any(0 in s for s, _ in shapes.values()) and length != lengths[-1]:
            continue
        return length, shapes | {p.name: (tuple(int(d or 0) for d in p.shape), p.dtype) for p in ports}
    raise InputError(f"{graph.name} runs in onnxruntime at none of the lengths {sorted(set(lengths))}: {complaint}.")


def _lists(node: Node) -> set[str]:
    """Outputs that are lists of tensors, which onnxruntime may hand out never."""
    if node.op in _LISTS:
        return set(node.outputs)
    body = node.attrs.get("body")
    if node.op != "Loop" or not isinstance(body, onnx.GraphProto):
        return set()
    return {o for o, v in zip(node.outputs, body.output[1:]) if v.type.HasField("sequence_type")}


def _inferred(model: onnx.ModelProto) -> list[Port]:
    """The tensors of a model with fixed inputs whose shapes can be told without running it."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # a model that it cannot read is told about when it runs
        return []
    ports = []
    for value in [*inferred.graph.value_info, *inferred.graph.output]:
        tensor = value.type.tensor_type
        dims = [d.dim_value for d in tensor.shape.dim]
        if all(d.HasField("dim_value") for d in tensor.shape.dim) and tensor.elem_type in KNOWN_TYPES:
            ports.append(
                Port(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name, tuple(dims))
            )
    return ports


def _slices_backwards(graph: Graph) -> bool:
    """Whether a Slice may have a negative step: onnx's inference ends the process where its axis is empty."""
    steps = {n.inputs[4] for n in graph.nodes if n.op == "Slice" and len(n.inputs) > 4 and n.inputs[4]}
    return any(name not in graph.constants or bool((graph.constants[name] < 0).any()) for name in steps)


def _without_frames(length: int, graph: Graph, ports: list[Port]) -> str:
    """Why a run is not tried: onnxruntime ends the process where a recurrence has no frames at all."""
    empty = {p.name for p in ports if 0 in p.shape}
    fragile = [n for n in graph.nodes if n.op in FRAGILE and empty.intersection(n.inputs[:1])]
    return f"at {length} frames nothing is left for {fragile[0].op} '{fragile[0].name}'" if fragile else ""


def _beyond_memory(length: int, ports: list[Port], most: int = MOST_MEMORY) -> str:
    """Why a run over ``length`` frames is not tried: a model that is damaged or too large would take all memory."""
    needed = sum(math.prod(int(d or 1) for d in p.shape) * np.dtype(p.dtype).itemsize for p in ports)
    if needed <= most:
        return ""
    return f"a run over {length} frames needs {needed >> 20} MiB, and runnel tries up to {most >> 20} MiB"
