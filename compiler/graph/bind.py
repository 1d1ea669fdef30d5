"""What a caller fixes before the rewrite: inputs bound to values, symbolic dimensions to numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from runnel.compiler.graph.model import Graph, Port
from runnel.errors import InputError


def bind(graph: Graph, values: Mapping[str, np.ndarray]) -> None:
    """Turn inputs into constants, in place. values: one array of the input's shape for each name.

    Raises InputError for an unknown name or a value that does not fit.
    """
    for name, value in values.items():
        port = _port(graph, name)
        array = np.asarray(value).astype(port.dtype)
        fits = array.ndim == len(port.shape) and all(
            not isinstance(want, int) or want == have for want, have in zip(port.shape, array.shape, strict=True)
        )
        if not fits:
            raise InputError(f"input '{name}' takes the shape {list(port.shape)}, not {list(array.shape)}.")
        graph.constants[name] = array
        graph.inputs.remove(port)
    if not graph.inputs:
        raise InputError("every input is bound to a value, so there is nothing to stream.")


def set_shapes(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give inputs fixed shapes, in place; a symbolic dimension gets its number wherever it stands.

    Raises InputError for an unknown name or a shape that contradicts the model.
    """
    known: dict[str, int] = {}
    for name, shape in shapes.items():
        port = _port(graph, name)
        if len(shape) != len(port.shape):
            raise InputError(f"input '{name}' has {len(port.shape)} axes, not {len(shape)}.")
        for want, have in zip(port.shape, shape, strict=True):
            if have < 1 or (isinstance(want, int) and want != have):
                raise InputError(f"input '{name}' takes the shape {list(port.shape)}, not {list(shape)}.")
            if isinstance(want, str) and known.setdefault(want, have) != have:
                raise InputError(f"the dimension '{want}' cannot be both {known[want]} and {have}.")
    for i, port in enumerate(graph.inputs):
        given = shapes.get(port.name, port.shape)
        dims = tuple(known.get(d, d) if isinstance(d, str) else d for d in given)
        graph.inputs[i] = replace(port, shape=dims)


def _port(graph: Graph, name: str) -> Port:
    for port in graph.inputs:
        if port.name == name:
            return port
    listed = ", ".join(f"'{p.name}'" for p in graph.inputs)
    raise InputError(f"the model has no input '{name}'; its inputs are {listed}.")
