"""Parts of a model that compute the same, such as the masks of its layers: looked at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.attention.pattern import SHAPES

SMALL = 64
Key = tuple[Any, ...]


def likeness(
    nodes: Iterable[Node], leaves: Collection[str], constants: Mapping[str, np.ndarray], output: str,
    sizes: Callable[[str], Any],
) -> Key:  # fmt: skip
    """What two parts have in common that make ``output`` of their leaves by the same ops: leaves and what is made on
    the way by number, small constants by value, large ones by name.

    nodes: all that are needed, in order. sizes: what those are asked for that give a shape.
    """
    numbers = {name: i for i, name in enumerate(leaves)}
    key: list[Any] = []
    for node in nodes:
        attrs = tuple(sorted((k, _value(v)) for k, v in node.attrs.items()))
        for name in node.outputs:
            numbers[name] = len(numbers)
        if node.op in SHAPES and node.inputs[0] not in leaves:
            key.append((node.op, sizes(node.inputs[0]), attrs))
        else:
            inputs = tuple(numbers.get(i, _known(i, constants)) for i in node.inputs)
            key.append((node.op, node.domain, inputs, attrs))
    return (tuple(key), numbers.get(output, output))


def _known(name: str, constants: Mapping[str, np.ndarray]) -> Any:
    value = constants.get(name)
    if value is None or value.size > SMALL:
        return name
    return (value.dtype.str, value.shape, value.tobytes())


def _value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    return tuple(value) if isinstance(value, list) else value if isinstance(value, (int, float, str)) else repr(value)
