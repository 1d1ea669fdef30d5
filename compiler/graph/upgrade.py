"""Opset 11 and 12 models in the form of opset 13: axes and sizes become inputs, softmax gets one axis. Models before
opset 11 are converted by the onnx package, which forgets where their resizes take values from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from runnel.errors import InputError

MOVED = {"Squeeze": "axes", "Unsqueeze": "axes", "ReduceSum": "axes", "Split": "split"}


def upgrade_to_13(model: onnx.ModelProto) -> None:
    """Rewrite in place. Raises InputError for a softmax over several axes, which opset 13 does not have."""
    ranks = _ranks(model)
    for node in list(_nodes(model.graph)):
        if node.domain not in ("", "ai.onnx"):
            continue
        if (moved := MOVED.get(node.op_type)) is not None:
            for attribute in list(node.attribute):
                if attribute.name == moved:
                    name = f"{node.output[0]}/{moved}"
                    values = np.array(helper.get_attribute_value(attribute), np.int64)
                    model.graph.initializer.append(numpy_helper.from_array(values, name))
                    node.input.append(name)
                    node.attribute.remove(attribute)
        elif node.op_type in ("Softmax", "LogSoftmax", "Hardmax"):
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            rank = ranks.get(node.input[0])
            if axis != -1 and rank is not None and axis % rank != rank - 1:
                raise InputError(
                    f"{node.op_type} '{node.name}' normalises over several axes at once (opset 12); export the "
                    f"model with opset 13."
                )
            if axis != -1 and rank is None:
                raise InputError(
                    f"the rank of the input of {node.op_type} '{node.name}' is not known; export with opset 13."
                )
            for attribute in [a for a in node.attribute if a.name == "axis"]:
                node.attribute.remove(attribute)
            node.attribute.append(helper.make_attribute("axis", -1))
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = 13


def convert(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A model of opset 7 to 10 in a newer opset. Raises InputError for a resize whose places cannot be kept.

    Before opset 11 place i of a resize was i / scale of the input, rounded down for nearest, and up where it makes
    fewer (as onnxruntime has it); the converter leaves the newer default, centres of pixels.
    """
    old = {n.output[0]: n.op_type for n in _nodes(model.graph) if n.op_type in ("Upsample", "Resize")}
    model = onnx.version_converter.convert_version(model, opset)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in _nodes(model.graph):
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    for node in _nodes(model.graph):
        if node.op_type != "Resize" or node.output[0] not in old:
            continue
        scales = constants.get(node.input[2]) if len(node.input) > 2 else None
        fewer = old[node.output[0]] == "Resize" and (scales is None or bool((scales < 1).any()))
        if fewer and (scales is None or (scales > 1).any()):
            raise InputError(
                f"{node.op_type} '{node.name}' resizes by factors below and above 1, or by factors that it computes "
                f"(opset 10); export the model with opset 11 or newer."
            )
        rounding = "ceil" if fewer else "floor"
        node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        node.attribute.append(helper.make_attribute("nearest_mode", rounding))
    return model


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of those inside it, which may read what is around them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # inference is a help here, not a check: ranks it cannot give stay unknown
        inferred = model.graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {v.name: len(v.type.tensor_type.shape.dim) for v in values if v.type.tensor_type.HasField("shape")}
