"""Steps as kernels like them: images with their channels last, codes unsigned, rounded activations as words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from runnel.compiler.graph.rounded import is_half
from runnel.compiler.lowering.frame import FrameValue
from runnel.compiler.lowering.layout import put_channels_last
from runnel.compiler.lowering.lower import Lowering
from runnel.compiler.lowering.signals import Signal, Step
from runnel.compiler.lowering.unsigned import make_unsigned

WORD_CODES = 4
HALF_SUMS = 16
"""Products that are summed in float16 before float32 takes over."""


def arranged(low: Lowering, lanes: int, unsigned: bool, fours: bool, halves: bool) -> Lowering:
    """A lowering as kernels with vectors of ``lanes`` like it. unsigned: whether sums of unsigned codes are shorter.
    fours: whether one instruction makes dot products of four codes. halves: whether there is float16 arithmetic."""
    low = put_channels_last(low, lanes)
    if unsigned:
        make_unsigned(low)
    if fours:
        _pack_rounded(low)
    if halves and low.graph.modes.get("activations") == "fp16":
        low.steps = [_in_halves(step) if isinstance(step, Step) else step for step in low.steps]
    return low


def _in_halves(step: Step) -> Step:
    """A product of float16 by float16 with sums in float16; other steps as they are."""
    node = step.node
    if node.op not in ("matmul", "conv", "matmul_blocks") or len(step.reads) != 1 or not step.reads[0].signal.half:
        return step
    weight, attrs = node.inputs[1], {"bits": 16, "block": HALF_SUMS, "half": True}
    if not isinstance(weight, np.ndarray):
        return step
    if node.op == "matmul_blocks":
        made = replace(node, attrs=node.attrs | attrs) if node.attrs["bits"] == 16 else node
        return replace(step, node=made)
    spatial = node.op == "conv" and (weight.ndim != 3 or int(node.attrs.get("group", 1)) != 1)
    if spatial or weight.dtype != np.float32 or not is_half(weight) or (node.op == "matmul" and weight.ndim != 2):
        return step
    codes = weight.transpose(2, 1, 0) if node.op == "conv" else weight[None]
    inputs = (node.inputs[0], np.ascontiguousarray(codes, np.float16), None, None, node.inputs[2])
    return replace(step, node=replace(node, op="matmul_blocks", inputs=inputs, attrs=attrs))


def _pack_rounded(low: Lowering) -> None:
    """Rounded activations that products by codes alone read become words (codegen/packed.py)."""
    other = {view.signal for view, _ in low.outputs.values()} | {signal for _, signal in low.feedback}
    readers: dict[Signal, list[Step]] = {}
    for step in low.steps:
        if not isinstance(step, Step):
            other |= {read.signal for read in getattr(step, "reads", [getattr(step, "read", None)]) if read is not None}
            continue
        for read in step.reads:
            readers.setdefault(read.signal, []).append(step)
    for step in low.steps:
        if not isinstance(step, Step) or step.node.op != "round_blocks" or step.output in other:
            continue
        signal, block = step.output, int(step.node.attrs["block"])
        if all(_multiplies(s, signal, block) for s in readers[signal]):
            inputs = step.node.output.shape[-1]
            words = inputs // WORD_CODES + 2 * -(-inputs // block)
            for reader in readers[signal]:
                _read_words(reader, signal, words)
            shape = (*step.node.output.shape[:-1], words)
            output = FrameValue(step.node.output.name, shape, "int32")
            step.node = replace(step.node, output=output, attrs=step.node.attrs | {"packed": True})
            signal.shape, signal.dtype, signal.pitch = shape, "int32", 0
            signal.__post_init__()


def _multiplies(step: Step, signal: Signal, block: int) -> bool:
    """Whether a step is a product of whole rows of the signal by codes with the same blocks."""
    node, reads = step.node, [r for r in step.reads if r.signal is signal]
    same = node.op == "matmul_blocks" and node.attrs["bits"] in (4, 8) and node.attrs["block"] == block
    return same and len(reads) == 1 and reads[0].taps == 1 and reads[0].value is node.inputs[0]


def _read_words(step: Step, signal: Signal, words: int) -> None:
    for read in step.reads:
        if read.signal is signal:
            read.value = FrameValue(read.value.name, (*read.value.shape[:-1], words), "int32")
            inputs = (read.value, *step.node.inputs[1:])
            step.node = replace(step.node, inputs=inputs, attrs=step.node.attrs | {"packed": True})
