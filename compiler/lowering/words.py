"""Words of a plan that describe a signal or a port, and the manifest's list of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runnel.compiler.codegen.module import Kernel
from runnel.compiler.lowering.frame import frame_elements
from runnel.compiler.lowering.fuse import FusedStep
from runnel.compiler.lowering.signals import Cached, Choose, Copy, Fetch, NoKernel, Signal
from runnel.compiler.streaming.ir import Stream

_OF_THE_CORE = {Cached: "attention", Choose: "choose", Fetch: "fetch", Copy: "copy"}


def fill_bits(fill: float, signal: Signal) -> int:
    """The four bytes that a frame is filled with, again and again. Raises NoKernel where four bytes cannot say it."""
    value = np.array(fill).astype(signal.stored).reshape(1)
    words = np.resize(value, max(1, 4 // value.itemsize)).view(np.int32)
    if (words != words[0]).any():
        raise NoKernel(f"'{signal.name}' is padded with {fill} in elements of {value.itemsize} bytes")
    return int(words[0])


def layout(stream: Stream) -> tuple[int, int]:
    """(outer count, inner bytes) of the caller's array around its time axis."""
    shape = stream.shape
    item = np.dtype(stream.dtype).itemsize
    at = stream.axis if stream.axis >= 0 else -1
    outer = int(np.prod([d for d in shape[:at] if d], dtype=np.int64)) if at > 0 else 1
    inner = shape[at + 1 :] if at >= 0 else shape
    return outer, int(np.prod([d for d in inner if d], dtype=np.int64)) * item


def part_of_frame(group: FusedStep) -> tuple[int, int]:
    """Where in the frame the kernel's output begins, and how much it makes, in bytes; 0 for the whole frame."""
    step = group.steps[-1]
    if step.place is None:
        return 0, 0
    item = group.output.item_bytes
    place, made = step.place * item, frame_elements(step.node.output.shape) * item
    return place, min(made, group.output.frame_bytes - place)


def dtype_number(dtype: str) -> int:
    """ONNX's number of an element type."""
    numbers = {"float32": 1, "int64": 7, "int32": 6, "bool": 9, "uint8": 2, "int8": 3, "float16": 10}
    if dtype not in numbers:
        raise NoKernel(f"has inputs of type {dtype}")
    return numbers[dtype]


def describe(
    groups: Sequence[FusedStep | Cached | Choose | Copy | Fetch], kernels: Sequence[Kernel | None]
) -> list[dict[str, Any]]:
    """What each instruction makes, of which ops, by which entry of the image; none for what the core does itself."""
    described = []
    for group, kernel in zip(groups, kernels, strict=True):
        if isinstance(group, FusedStep) and kernel is not None:
            ops = "+".join(s.node.op for s in group.steps)
            described.append({"output": group.output.name, "ops": ops, "symbol": kernel.variants[1]})
        else:
            ops = next(name for kind, name in _OF_THE_CORE.items() if isinstance(group, kind))
            described.append({"output": group.output.name, "ops": ops, "symbol": ""})
    return described
