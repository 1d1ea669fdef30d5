"""What sums of products are made of: fused float32 multiply-adds, or products of codes added up in int32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runnel.compiler.codegen import ops
from runnel.compiler.codegen.builder import Builder, Expr, constant, lanes_of, splat
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.lowering.frame import FrameNode

CODES = ("int8", "uint8")


@dataclass(frozen=True)
class Arithmetic:
    """kind: of the sums, float32 or int32. zero: what is taken off every code before it is multiplied."""

    b: Builder
    kind: str
    zero: int = 0

    @staticmethod
    def of(b: Builder, node: FrameNode) -> Arithmetic:
        """That of a convolution or product whose second input is constant."""
        x, w = node.inputs[:2]
        assert x is not None
        if str(x.dtype) in CODES and isinstance(w, np.ndarray) and w.dtype.kind == "i":
            return Arithmetic(b, "int32", int(node.attrs.get("zero_point", 0)))
        if str(x.dtype) != "float32":
            raise Unsupported(node.op, f"of {x.dtype}; only float32, and codes of 8 bits by integer weights")
        return Arithmetic(b, "float32")

    def weights(self, value: np.ndarray) -> np.ndarray:
        """The weights as they are stored."""
        return value if self.kind == "int32" else np.asarray(value, np.float32)

    def start(self, lanes: int) -> Expr:
        return constant(0, self.kind, lanes)

    def input(self, value: Expr) -> Expr:
        """A loaded element (or one a lane), ready to be multiplied."""
        if self.kind == "float32":
            return self.b.let(value)
        wide = ops.cast(self.b, value, "int32")
        return self.b.let(wide - constant(self.zero, "int32", lanes_of(wide))) if self.zero else wide

    def weight(self, value: Expr) -> Expr:
        """A loaded weight (or one a lane)."""
        return value if self.kind == "float32" else ops.cast(self.b, value, "int32")

    def add_product(self, x: Expr, w: Expr, total: Expr) -> Expr:
        """x · w + total."""
        if self.kind == "float32":
            return self.b.fma(x, w, total)
        lanes = lanes_of(total)
        return total + splat(x, lanes) * splat(w, lanes)


def lowest(dtype: str) -> Expr:
    """A scalar that no element is below."""
    return constant(-np.inf if dtype.startswith("float") else int(np.iinfo(dtype).min), dtype)


__all__ = ["Arithmetic", "lowest"]
