"""The peer that bench measures against: onnxruntime on the bundle's streaming graph, with every buffer bound in place.

Two bindings take turns, so that a call reads the states where the one before wrote them; nothing is copied or allocated
but the input.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runnel.runtime.backends.onnxruntime import STACKED, OnnxProgram, open_session
from runnel.runtime.bundle import Bundle

Array = NDArray[Any]


class BoundProgram:
    """Looks to bench like a program. Its streams take exactly ``hop`` frames a push and give raw calls' outputs."""

    def __init__(self, path: str | os.PathLike[str], steady: bool = False) -> None:
        bundle = Bundle(path)
        self.whole = OnnxProgram.from_bundle(bundle)
        model = bundle.read("streaming.onnx")
        if steady:
            model = without_edges(model, self.whole.onnx["position"], self.whole.onnx["length"])
            self.whole = OnnxProgram(bundle.manifest, model, self.whole.initial)
        self.whole.session = open_session(model, fastest=True)  # a peer gets its best known setting
        self.hop, self.rate, self.state_bytes = self.whole.hop, self.whole.rate, self.whole.state_bytes
        self.inputs, self.outputs = self.whole.inputs, self.whole.outputs
        self.timed, self.statics, self.max_frames = self.whole.timed, self.whole.statics, self.whole.max_frames

    def stream(self, inputs: Mapping[str, Array] | None = None) -> BoundStream:
        return BoundStream(self.whole, inputs or {})


def without_edges(model: bytes, position: str, length: str) -> bytes:
    """The portable form as it would be if streams had no start and no end: the fastest form that a peer could be given.

    What depends on the position and the length alone is a mask, a bound or an index that changes nothing in the middle
    of a stream; it is left out.
    """
    import onnx

    proto = onnx.load_from_string(model)
    graph = proto.graph
    edge = {position, length}
    fixed = {tensor.name for tensor in graph.initializer} | {""}
    same: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = same.get(name, name)
        if edge.intersection(node.input) and all(i in edge or i in fixed for i in node.input):
            edge.update(node.output)
        elif node.op_type == "Where" and node.input[0] in edge:
            same[node.output[0]] = node.input[1]
        elif node.op_type == "Gather" and node.input[1] in edge:
            same[node.output[0]] = node.input[0]
        else:
            if node.op_type in ("GRU", "LSTM", "RNN") and node.input[4] in edge:
                node.input[4] = ""
            kept.append(node)
    outputs = {value.name for value in graph.output}
    kept += [onnx.helper.make_node("Identity", [new], [old]) for old, new in same.items() if old in outputs]
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    inputs = [value for value in graph.input if value.name in used]
    del graph.input[:]
    graph.input.extend(inputs)
    return bytes(proto.SerializeToString())


class BoundStream:
    """One stream: its buffers and two bindings."""

    def __init__(self, program: OnnxProgram, statics: Mapping[str, Array]) -> None:
        self.program = program
        described = program.onnx
        session = program.session
        self.session: Any = session
        self.ports, self.hop = program.timed, program.hop
        self.inputs: dict[str, Array] = {}
        for port, asked in zip(program.timed, described["inputs"]):
            shape = port.sized(program.hop * port.per_tick)
            self.inputs[port.name] = np.zeros(shape[1:] if asked["axis"] == STACKED else shape, port.dtype)
        self.statics = dict(statics)
        self.position = np.zeros((), np.int64)
        length = np.array(program.unknown_length, np.int64)
        scalars = {described["position"]: self.position, described["length"]: length}
        here = {state["in"]: np.array(program.initial[state["in"]], order="C") for state in described["states"]}
        there = {name: np.zeros_like(value) for name, value in here.items()}
        shapes = {value.name: value.shape for value in session.get_outputs()}
        dtypes = {port.name: port.dtype for port in program.outputs}
        results = {name: np.zeros(shapes[name], dtype) for name, dtype in dtypes.items()}
        self.results = list(results.values())
        self._kept = [scalars, here, there, results]
        self.bindings = []
        for read, write in ((here, there), (there, here)):
            states = {state["out"]: write[state["in"]] for state in described["states"]}
            self.bindings.append(self._bind(self.inputs | self.statics | scalars | read, results | states))

    def _bind(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> Any:
        binding = self.session.io_binding()
        for value in self.session.get_inputs():
            array = inputs[value.name]
            binding.bind_input(value.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for value in self.session.get_outputs():
            array = outputs[value.name]
            binding.bind_output(value.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding

    def push(self, x: Array | dict[str, Array]) -> list[Array]:
        """One call. The arrays that come back are overwritten by the next."""
        given = x if isinstance(x, dict) else {self.ports[0].name: x}
        for name, array in given.items():
            np.copyto(self.inputs[name], array.reshape(self.inputs[name].shape))
        binding = self.bindings[int(self.position) // self.hop % 2]
        self.session.run_with_iobinding(binding)
        self.position += self.hop
        return self.results
