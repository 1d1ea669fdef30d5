"""What ``compile`` and ``inspect`` hand on between their parts."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

from runnel.compiler.streaming.ir import StreamGraph
from runnel.tools.prove import Arrays


@dataclass
class Rewritten:
    """A model after the streaming rewrite. fixed: inputs bound to values. initial: first values of its own states.

    exported: a quantised model before its sums were taken in int32. half: a model of float16 tensors as it was given.
    """

    graph: StreamGraph
    proto: onnx.ModelProto
    states: dict[str, str]
    fixed: Arrays = field(default_factory=dict)
    initial: Arrays = field(default_factory=dict)
    exported: onnx.ModelProto | None = None
    half: onnx.ModelProto | None = None
