"""Kernels that differ in large constants alone have the same code, which is then made once.

A decoder has hundreds of products of a few shapes. Of a product by blocks of codes the code depends on the constants'
shapes and on what they are stored as; all other constants are compared by their bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import astuple, replace
from typing import Any, TypeAlias

import numpy as np

from runnel.compiler.codegen.context import Arg
from runnel.compiler.lowering.frame import FrameNode, FrameValue, Group

Form: TypeAlias = "tuple[Hashable, ...]"
ANCHOR = "matmul_blocks"
PACKED = ("codes", "scales", "zeros", "bias")


def form_of(group: Group) -> Form | None:
    """What the code of a group depends on; None where that is more than is looked at here."""
    if sum(node.op == ANCHOR for node in group.nodes) != 1:
        return None
    numbers: dict[FrameValue, int] = {value: i for i, value in enumerate(group.inputs)}
    reads = tuple((v.shape, str(v.dtype), astuple(a)) for v, a in group.inputs.items())
    nodes = []
    for node in group.nodes:
        inputs = tuple(_operand(node, i, x, numbers) for i, x in enumerate(node.inputs))
        numbers[node.output] = len(numbers)
        attrs = tuple(sorted((k, _frozen(v)) for k, v in node.attrs.items()))
        nodes.append((node.op, inputs, node.output.shape, str(node.output.dtype), attrs))
    return (reads, tuple(nodes), group.rows, group.out_row_pitch, group.apart, group.shared)


def _operand(node: FrameNode, i: int, x: FrameValue | np.ndarray | None, numbers: dict[FrameValue, int]) -> Hashable:
    if isinstance(x, np.ndarray):
        shape = (x.dtype.str, x.shape)
        if node.op == ANCHOR and i <= len(PACKED):
            return shape
        return (*shape, hashlib.sha256(np.ascontiguousarray(x).tobytes()).digest())
    return None if x is None else numbers[x]


def _frozen(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


def without_constants(args: tuple[Arg, ...]) -> tuple[Arg, ...]:
    """Arguments whose constants are not held: shapes and types of them alone."""
    empty = [None if a.data is None else np.broadcast_to(np.zeros((), a.data.dtype), a.data.shape) for a in args]
    return tuple(replace(a, data=data) for a, data in zip(args, empty, strict=True))


def with_constants(packed: tuple[Arg, ...], known: tuple[Arg, ...]) -> tuple[Arg, ...] | None:
    """The arguments of a kernel that was packed, if they are those of the known code; else None."""

    def kind(arg: Arg) -> Hashable:
        return arg.role, None if arg.data is None else (arg.data.dtype.str, arg.data.shape)

    return packed if [kind(a) for a in packed] == [kind(a) for a in known] else None
