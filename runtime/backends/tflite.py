"""Runs TensorFlow Lite files on LiteRT, hidden state included, as a program whose streams save, restore and clone.

The stream's clock ticks once a run: a frame of an input or output is what one run takes or gives. A tensor [1, a, b]
is a port [frames, a, b], any other tensor gets the axis of frames in front. Codes of quantised tensors stay codes;
``TfliteProgram.quantisation`` says what they mean.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runnel.errors import BundleError, InputError, StreamError
from runnel.runtime.backends import tflite_file
from runnel.runtime.backends.tflite_file import Tensor, TfliteFile
from runnel.runtime.program import (
    FOREIGN_STATE,
    Array,
    Program,
    Result,
    Stream,
    check_policy,
    checked_inputs,
    checked_out,
    describe_nonfinite,
)

MAGIC = b"RNLTFLT\1"
COUNTERS = 16  # bytes of a snapshot's position and end


class TfliteProgram(Program):
    """A TensorFlow Lite file. quantisation: {port: (scale, zero point)}; a code q stands for scale · (q - zero)."""

    backend = "tflite"

    def __init__(self, data: bytes, name: str) -> None:
        self.file: TfliteFile = tflite_file.read(data, name)
        ports = {
            "inputs": [_described(t) for t in self.file.inputs],
            "outputs": [_described(t) for t in self.file.outputs],
        }
        super().__init__(
            {"name": Path(name).stem, "hop": 1, "latency_frames": 0, "clock": {"rate": None}, "modes": {}, **ports}
        )
        tensors = (*self.file.inputs, *self.file.outputs)
        self.quantisation = {t.name: t.quantisation for t in tensors if t.quantisation is not None}
        self.snapshot_head = MAGIC + hashlib.sha256(data).digest()
        self.interpreter()  # what LiteRT refuses is told now

    @staticmethod
    def from_file(path: str | os.PathLike[str]) -> TfliteProgram:
        """Raises BundleError for a file that is damaged or not understood, InputError where LiteRT is missing."""
        name = os.fspath(path)
        try:
            data = Path(name).read_bytes()
        except OSError as error:
            raise BundleError(f"'{name}' cannot be read: {error.strerror}.") from None
        return TfliteProgram(data, name)

    def interpreter(self) -> Any:
        """LiteRT with the file, on one thread. Raises BundleError."""
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError:
            raise InputError("the tflite backend needs LiteRT; pip install 'runnel[tflite]'.") from None
        # Tensors that are changed in place are LiteRT's own only without a delegate.
        kinds = OpResolverType
        kind = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if self.file.in_place else kinds.AUTO
        try:
            made = Interpreter(
                model_content=self.file.content, num_threads=1, experimental_op_resolver_type=kind
            )  # fmt: skip
            made.allocate_tensors()
        except (ValueError, RuntimeError, TypeError) as error:
            said = str(error).strip().splitlines()[-1:] or ["no reason"]
            raise BundleError(f"LiteRT does not take '{self.manifest['name']}': {said[0]}.") from None
        return made

    @property
    def state_bytes(self) -> int:
        return sum(v.initial.nbytes for v in self.file.variables) + sum(map(_bytes, self.file.in_place))

    def stream(
        self, state: bytes | None = None, on_nonfinite: str = "error", inputs: Mapping[str, Any] | None = None,
        kv: str | None = None, position: int = 0,
    ) -> TfliteStream:  # fmt: skip
        self.check_no_caches(kv, position)
        check_policy(on_nonfinite)
        self.check_statics(inputs, whole=True)
        stream = TfliteStream(self, on_nonfinite)
        if state is not None:
            stream.restore(state)
        return stream


class TfliteStream(Stream):
    """An interpreter of its own, and the values of the file's variables."""

    def __init__(self, program: TfliteProgram, on_nonfinite: str) -> None:
        self.program: TfliteProgram = program
        self.on_nonfinite = on_nonfinite
        self._lite = program.interpreter()
        self.reset()

    def reset(self) -> None:
        self._states = [v.initial for v in self.program.file.variables]
        if self.program.file.in_place:
            self._lite.reset_all_variables()
        self._position = 0
        self._flushed = False

    def push(self, x: Array | Mapping[str, Array], out: Result | None = None) -> Result:
        arrays, frames, restart = self._accepted(x)
        ports = self.program.outputs
        if out is None:
            results = [np.empty(port.sized(frames), port.dtype) for port in ports]
        else:
            given = checked_out(self.program, out, [frames] * len(ports))
            results = [array[:frames] for array in given]
        if restart:
            self.reset()
        for n in range(frames):
            self._run([array[n : n + 1] for array in arrays], [result[n : n + 1] for result in results])
        self._position += frames
        return self._named(results)

    def _run(self, inputs: list[Array], outputs: list[Array]) -> None:
        lite, file = self._lite, self.program.file
        for tensor, value in zip(file.inputs, inputs):
            lite.set_tensor(tensor.index, value.reshape(tensor.shape))
        for variable, state in zip(file.variables, self._states):
            lite.set_tensor(variable.before.index, state)
        try:
            lite.invoke()
        except RuntimeError as error:
            said = str(error).strip().splitlines()[-1:] or ["no reason"]
            raise StreamError(f"LiteRT failed ({said[0]}); reset the stream, or use another file.") from None
        for tensor, result in zip(file.outputs, outputs):
            result[...] = lite.get_tensor(tensor.index).reshape(result.shape)
        self._states = [lite.get_tensor(v.after).reshape(v.before.shape) for v in file.variables]

    def check(self, x: Array | Mapping[str, Array]) -> None:
        self._accepted(x)

    def _accepted(self, x: Array | Mapping[str, Array]) -> tuple[list[Array], int, bool]:
        self._check_goes_on()
        arrays, frames = checked_inputs(self.program, x)
        bad = any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in arrays)
        if bad and self.on_nonfinite == "error":
            raise StreamError(describe_nonfinite(self.program.timed, arrays))
        if bad:
            arrays = [np.where(np.isfinite(a), a, 0).astype(a.dtype) if a.dtype.kind == "f" else a for a in arrays]
        return arrays, frames, bad and self.on_nonfinite == "reset"

    def _check_goes_on(self) -> None:
        if self._flushed:
            raise StreamError("the stream has ended; call reset() to start it again.")

    def flush(self) -> Result:
        self._check_goes_on()
        self._flushed = True
        return self._named([np.empty(port.sized(0), port.dtype) for port in self.program.outputs])

    def _set_static(self, name: str, value: Array) -> None:
        raise StreamError(f"'{name}' is no static input; a TensorFlow Lite file has none.")

    def save(self) -> bytes:
        numbers = np.array([self._position, self._flushed], "<i8").tobytes()
        in_place = [self._lite.get_tensor(t.index) for t in self.program.file.in_place]
        body = numbers + b"".join(value.tobytes() for value in (*self._states, *in_place))
        return self.program.snapshot_head + hashlib.sha256(body).digest() + body

    def restore(self, state: bytes) -> None:
        head, file = self.program.snapshot_head, self.program.file
        body = bytes(state)[len(head) + hashlib.sha256().digest_size :]
        whole = head + hashlib.sha256(body).digest() + body
        if bytes(state) != whole or len(body) != COUNTERS + self.program.state_bytes:
            raise StreamError(FOREIGN_STATE)
        position, flushed = (int(n) for n in np.frombuffer(body, "<i8", 2))
        at = COUNTERS
        values = []
        for tensor in (*(v.before for v in file.variables), *file.in_place):
            value = np.frombuffer(body, tensor.dtype, int(np.prod(tensor.shape)), at).reshape(tensor.shape)
            values.append(value)
            at += value.nbytes
        self._states = values[: len(file.variables)]
        for tensor, value in zip(file.in_place, values[len(file.variables) :]):
            self._lite.tensor(tensor.index)()[...] = value
        self._position, self._flushed = position, bool(flushed)

    def clone(self) -> TfliteStream:
        return self.program.stream(self.save(), self.on_nonfinite)

    @property
    def position(self) -> int:
        return self._position

    def _named(self, results: list[Array]) -> Result:
        if len(results) == 1:
            return results[0]
        return {port.name: array for port, array in zip(self.program.outputs, results)}


def _described(tensor: Tensor) -> dict[str, Any]:
    shape = tensor.shape[1:] if tensor.shape[:1] == (1,) else tensor.shape
    return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": [None, *shape], "axis": 0}


def _bytes(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape)) * tensor.dtype.itemsize


__all__ = ["TfliteProgram", "TfliteStream"]
