"""Weights rounded to few bits: what the named mode ``weights`` makes of them, and codes found again in what it made.

int8 and int4 take blocks of inputs of one output, each with a scale of its own that is a float16; fp16 takes none.
A rounded weight is a code times a scale, exact in float32, and rounding it again gives the same code and scale. So a
matrix that was rounded can be turned or cut and still be read as codes, and one that was not is told from it.
"""

from __future__ import annotations

import numpy as np

from runnel.compiler.graph.blocks import Blocks

FORMS = {"int8": 8, "int4": 4, "fp16": 16}
USUAL_BLOCK = 32
LEAST_INPUTS = 32
LEAST_OUTPUTS = 16
_SAMPLE = 64


def is_half(values: np.ndarray) -> bool:
    """Whether float32 are all float16 exactly."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore"):
        return all(np.array_equal(some, some.astype(np.float16)) for some in (flat[:_SAMPLE], flat))


def parse(value: str) -> tuple[int, int]:
    """(bits, block) of "int8", "int4:64", "fp16"."""
    name, _, block = value.partition(":")
    return FORMS[name], int(block or USUAL_BLOCK)


def worth(inputs: int, outputs: int) -> bool:
    """Whether a product is large enough to gain."""
    return inputs >= LEAST_INPUTS and outputs >= LEAST_OUTPUTS


def rounded(weights: np.ndarray, bits: int, block: int, axis: int) -> np.ndarray:
    """The nearest weights of ``bits`` bits, float32 again. axis: that of the inputs. As they were beyond float16."""
    moved = np.moveaxis(weights, axis, 0)
    coded = codes_of(moved.reshape(moved.shape[0], -1), bits, block)
    if coded is None:
        return weights
    return np.ascontiguousarray(np.moveaxis(coded.real().reshape(moved.shape), 0, axis))


def recoded(weights: np.ndarray, bits: int, block: int) -> Blocks | None:
    """The codes of weights (inputs, outputs) that were rounded so; None for others."""
    if not worth(*weights.shape):
        return None
    coded = codes_of(weights, bits, block)
    return coded if coded is not None and np.array_equal(coded.real(), weights) else None


def codes_of(weights: np.ndarray, bits: int, block: int) -> Blocks | None:
    """The nearest codes of weights (inputs, outputs), of 2, 4, 8 or 16 bits; None beyond float16.

    Of the largest element of a block the code is -2^(bits - 1), or ±127 of 8 bits.
    """
    inputs, outputs = weights.shape
    if bits == 16:
        with np.errstate(over="ignore"):
            half = weights.astype(np.float16)
        return Blocks(16, inputs, half, np.ones((1, outputs), np.float32), None) if np.isfinite(half).all() else None
    blocks = -(-inputs // block)
    padded = np.zeros((blocks * block, outputs), np.float32)
    padded[:inputs] = weights
    parts = padded.reshape(blocks, block, outputs)
    at = np.abs(parts).argmax(1)[:, None]
    largest = np.take_along_axis(parts, at, 1)[:, 0]
    with np.errstate(over="ignore"):
        scales = (np.abs(largest) / 127 if bits == 8 else largest / -(1 << (bits - 1))).astype(np.float16)
    if not np.isfinite(scales).all():
        return None
    steps = scales.astype(np.float32)
    low, high = (-127, 127) if bits == 8 else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    codes = np.divide(parts, steps[:, None], out=np.zeros_like(parts), where=steps[:, None] != 0)
    codes = np.clip(np.rint(codes), low, high).astype(np.int8)
    return Blocks(bits, block, codes.reshape(-1, outputs)[:inputs], steps, None)
