"""Large constants that are float16 exactly: half of the bytes in the portable form, made float32 as it is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from runnel.compiler.graph.half import KEPT
from runnel.compiler.graph.rounded import is_half


def initializers(
    constants: Mapping[str, np.ndarray], used: Collection[str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The constants that are used, as nodes to go first and as tensors."""
    nodes, tensors = [], []
    for name, value in constants.items():
        if name not in used:
            continue
        if value.dtype == np.float32 and value.size >= KEPT and is_half(value):
            nodes.append(helper.make_node("Cast", [f"{name}/half"], [name], name=name, to=onnx.TensorProto.FLOAT))
            tensors.append(numpy_helper.from_array(value.astype(np.float16), f"{name}/half"))
        else:
            tensors.append(numpy_helper.from_array(value, name))
    return nodes, tensors
