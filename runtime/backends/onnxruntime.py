"""The reference backend: runs a bundle's ``streaming.onnx``, whose states are named inputs and outputs.

A call consumes exactly ``hop`` input frames. Output o of the call that starts at input frame p carries frames
[p·n/hop - D, p·n/hop - D + n) of it, n being its frames a call and D its delay; those before 0 and from the output's
length on are dropped.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from runnel.errors import BundleError, InputError, InternalError, StreamError
from runnel.runtime.bundle import Bundle
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
    offered,
)

UNKNOWN_LENGTH = 1 << 62
MAGIC = b"RNLONNX\1"
DIGEST = 32  # bytes of a sha256
INPUT, AFFINE, MIN, MAX, CONST = range(5)
STACKED = -1  # the ONNX model sees one frame at a time and no time axis


def evaluate(words: list[list[int]], t: int) -> int:
    """The last of a list of clocks (docs/plan.md) at t."""
    values: list[int] = []
    for op, a, b, mul, div, add in words:
        if op == INPUT:
            values.append(t)
        elif op == AFFINE:
            values.append(max(0, (values[a] * mul + add) // div))
        elif op in (MIN, MAX):
            values.append((min if op == MIN else max)(values[a], values[b]))
        elif op == CONST:
            values.append(add)
        else:
            raise BundleError(f"the manifest has the unknown clock op {op}; update runnel.")
    return values[-1]


def open_session(model: bytes, fastest: bool = False) -> Any:
    """An onnxruntime session on one thread, with its basic rewrites of the graph.

    fastest: with all of them; in 1.31 one gives wrong numbers (Transpose before MatMul by a vector). Raises InputError
    where onnxruntime is missing, BundleError where it refuses the model.
    """
    try:
        import onnxruntime
    except ImportError:
        raise InputError(
            "the onnxruntime backend needs onnxruntime; pip install onnxruntime, or use backend='native'."
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not fastest:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises types of its own, without a common base
        raise BundleError(f"onnxruntime does not take streaming.onnx ({error}); compile the model again.") from None


class OnnxProgram(Program):
    """A streaming ONNX model. initial: {state input: its value at the start}."""

    backend = "onnxruntime"

    def __init__(
        self, manifest: Mapping[str, Any], model: bytes, initial: Mapping[str, Array], poison: bool = False
    ) -> None:
        super().__init__(manifest)
        described = manifest["onnx"]
        if described is None:
            raise BundleError(f"'{manifest['name']}' has no ONNX form; use backend='native'.")
        self.onnx: Mapping[str, Any] = described
        self.hop = int(described["hop"])
        self.poison = poison
        self.unknown_length = int(described.get("unknown_length", UNKNOWN_LENGTH))
        self.session = open_session(model)
        self.snapshot_head = MAGIC + hashlib.sha256(model).digest()
        self.fed = frozenset(i.name for i in self.session.get_inputs())
        self.given = [o.name for o in self.session.get_outputs()]
        self.initial = dict(initial)

    @staticmethod
    def from_bundle(bundle: Bundle, poison: bool = False) -> OnnxProgram:
        """Raises BundleError, and InputError where onnxruntime is missing."""
        initial = {}
        for state in (bundle.manifest["onnx"] or {}).get("states", ()):
            shape, dtype = state["shape"], np.dtype(state["dtype"])
            if state.get("initial"):
                value = np.load(io.BytesIO(bundle.read(state["initial"])), allow_pickle=False)
                if list(value.shape) != shape or value.dtype != dtype:
                    raise BundleError(
                        f"'{bundle.path}': entry '{state['initial']}' does not fit its state; compile the model again."
                    )
            else:
                value = np.full(shape, float(state.get("fill") or 0), dtype)
            initial[state["in"]] = value
        return OnnxProgram(bundle.manifest, bundle.read("streaming.onnx"), initial, poison)

    @property
    def state_bytes(self) -> int:
        return sum(value.nbytes for value in self.initial.values())

    def stream(
        self, state: bytes | None = None, on_nonfinite: str = "error", inputs: Mapping[str, Any] | None = None,
        kv: str | None = None, position: int = 0,
    ) -> OnnxStream:  # fmt: skip
        check_policy(on_nonfinite)
        self.check_no_caches(kv, position)
        stream = OnnxStream(self, on_nonfinite)
        stream.statics = self.check_statics(inputs, whole=state is None)
        if state is not None:
            stream.restore(state)
            stream.statics |= self.check_statics(inputs, whole=False)
        return stream


class OnnxStream(Stream):
    """States as arrays, and a FIFO of fewer than ``hop`` frames in front of the model."""

    def __init__(self, program: OnnxProgram, on_nonfinite: str) -> None:
        self.program: OnnxProgram = program
        self.on_nonfinite = on_nonfinite
        self.statics: dict[str, Array] = {}
        self._feed = program.feed()
        self.reset()

    def reset(self) -> None:
        self._states = dict(self.program.initial)
        self._waiting = [np.empty(port.sized(0), port.dtype) for port in self.program.timed]
        if self._feed is not None:
            self._feed.clear()
        self._consumed = 0  # input frames given to the model, padding included
        self._position = 0
        self._flushed = False
        self._tails: dict[str, Array] = {}

    def push(self, x: Array | Mapping[str, Array], out: Result | None = None) -> Result:
        arrays, frames, restart = self._accepted(x)
        if restart:
            self.reset()
        into = None if out is None else checked_out(self.program, out, self._count_due(frames))
        if self._feed is not None:
            self._feed.commit()
        self._position += frames
        ports = self.program.timed
        self._waiting = [np.concatenate([w, a], axis=p.axis or 0) for w, a, p in zip(self._waiting, arrays, ports)]
        pieces: list[list[Array]] = [[] for _ in self.program.outputs]
        hop = self.program.hop
        calls = (self._position - self._consumed) // hop
        for i in range(calls):
            cuts = (i * hop, (i + 1) * hop)
            chunk = [_frames(w, p.axis, *(c * p.per_tick for c in cuts)) for w, p in zip(self._waiting, ports)]
            self._call(chunk, None, pieces)
        taken = calls * hop
        self._waiting = [_frames(w, p.axis, taken * p.per_tick, None).copy() for w, p in zip(self._waiting, ports)]
        results = self._joined(pieces)
        if into is None:
            return self._named(results)
        parts = [
            _frames(a, p.axis or 0, 0, r.shape[p.axis or 0]) for a, p, r in zip(into, self.program.outputs, results)
        ]
        for part, result in zip(parts, results):
            part[...] = result
        return self._named(parts)

    def check(self, x: Array | Mapping[str, Array]) -> None:
        self._accepted(x)

    def _accepted(self, x: Array | Mapping[str, Array]) -> tuple[list[Array], int, bool]:
        """The finite arrays of a push, their frames, and whether the stream starts again for them. Raises
        StreamError."""
        self._check_goes_on()
        if self._feed is not None:
            ready, restart = offered(self.program, x, self.on_nonfinite)
            arrays, frames = self._feed.offer(ready, fresh=restart)
        else:
            arrays, frames = checked_inputs(self.program, x)
            bad = any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in arrays)
            if bad and self.on_nonfinite == "error":
                raise StreamError(describe_nonfinite(self.program.timed, arrays))
            if bad:
                arrays = [np.where(np.isfinite(a), a, 0).astype(a.dtype) if a.dtype.kind == "f" else a for a in arrays]
            restart = bad and self.on_nonfinite == "reset"
        self.check_room(frames, 0 if restart else None)
        return arrays, frames, restart

    def _check_goes_on(self) -> None:
        if self._flushed:
            raise StreamError("the stream has ended; call reset() to start it again.")

    def _set_static(self, name: str, value: Array) -> None:
        self.statics[name] = value

    def flush(self) -> Result:
        self._check_goes_on()
        if self._feed is not None:
            self._feed.check_end()
        self.check_length()
        total, hop, ports = self._position, self.program.hop, self.program.timed
        pieces: list[list[Array]] = [[] for _ in self.program.outputs]
        while not self._complete(total):
            chunk = []
            for waiting, port in zip(self._waiting, ports):
                missing = hop * port.per_tick - port.frames(waiting)
                nothing = np.nan if self.program.poison and port.dtype.kind == "f" else 0
                padding = np.full(port.sized(missing), nothing, port.dtype)
                chunk.append(np.concatenate([waiting, padding], axis=port.axis or 0))
            self._waiting = [np.empty(port.sized(0), port.dtype) for port in ports]
            self._call(chunk, total, pieces)
        self._flushed = True
        for i, described in enumerate(self.program.onnx["outputs"]):
            if "after" in described:
                pieces[i] = [self._tails[described["name"]]]
            if "tail" in described and described["name"] in self._tails:
                start, stop = (max(0, evaluate(described["length"], total) - before) for before in described["tail"])
                value, axis = self._tails[described["name"]], self.program.outputs[i].axis or 0
                pieces[i].append(_frames(value, axis, value.shape[axis] - (stop - start), value.shape[axis]))
        return self._named(self._joined(pieces))

    def save(self) -> bytes:
        buffer = io.BytesIO()
        numbers = np.array([self._position, self._consumed, self._flushed], np.int64)
        arrays = {"numbers": numbers} | {f"waiting.{i}": w for i, w in enumerate(self._waiting)}
        arrays |= {f"state.{i}": self._states[name] for i, name in enumerate(self.program.initial)}
        arrays |= {f"tail.{name}": value for name, value in self._tails.items()}
        arrays |= {f"static.{i}": self.statics[port.name] for i, port in enumerate(self.program.statics)}
        if self._feed is not None:
            arrays["feed"] = np.frombuffer(self._feed.save(), np.uint8)
        np.savez(buffer, allow_pickle=False, **arrays)
        body = buffer.getvalue()
        return self.program.snapshot_head + hashlib.sha256(body).digest() + body

    def restore(self, state: bytes) -> None:
        """Go on from a snapshot. Raises StreamError for one of another program."""
        head = self.program.snapshot_head
        try:
            body = state[len(head) + DIGEST :]
            if not state.startswith(head + hashlib.sha256(body).digest()):
                raise ValueError
            with np.load(io.BytesIO(body), allow_pickle=False) as saved:
                position, consumed, flushed = (int(v) for v in saved["numbers"])
                waiting = [saved[f"waiting.{i}"] for i in range(len(self.program.timed))]
                statics = {port.name: saved[f"static.{i}"] for i, port in enumerate(self.program.statics)}
                feed = saved["feed"].tobytes() if self._feed is not None else b""
                states = {name: saved[f"state.{i}"] for i, name in enumerate(self.program.initial)}
                tails = {key[5:]: saved[key] for key in saved.files if key.startswith("tail.")}
            for name, value in states.items():
                like = self.program.initial[name]
                if value.shape != like.shape or value.dtype != like.dtype:
                    raise ValueError
            if self._feed is not None:
                self._feed.load(feed)
        except Exception:  # numpy and zipfile raise many types for damaged bytes
            raise StreamError(FOREIGN_STATE) from None
        self._position, self._consumed, self._flushed = position, consumed, bool(flushed)
        self._waiting, self._states, self._tails, self.statics = waiting, states, tails, statics

    def clone(self) -> OnnxStream:
        twin = OnnxStream(self.program, self.on_nonfinite)
        twin.restore(self.save())
        return twin

    @property
    def position(self) -> int:
        return self._position

    def _call(self, chunk: list[Array], total: int | None, pieces: list[list[Array]]) -> None:
        program = self.program
        described = program.onnx
        feeds: dict[str, Array] = {}
        for value, port, asked in zip(chunk, program.timed, described["inputs"]):
            feeds[port.name] = value[0] if asked["axis"] == STACKED and port.axis == 0 else np.ascontiguousarray(value)
        feeds[described["position"]] = np.array(self._consumed, np.int64)
        feeds[described["length"]] = np.array(program.unknown_length if total is None else total, np.int64)
        feeds |= self._states | self.statics
        feeds = {name: value for name, value in feeds.items() if name in program.fed}
        values = dict(zip(program.given, program.session.run(None, feeds)))
        for state in described["states"]:
            self._states[state["in"]] = values[state["out"]]
        for i, output in enumerate(described["outputs"]):
            value = values[output["name"]]
            if "tail" in output or "after" in output:
                self._tails[output["name"]] = value
                continue
            if output["axis"] == STACKED:
                value = value[None]
            first = self._frame(output, self._consumed)
            start = max(0, -first)
            stop = int(output["frames"])
            if total is not None:
                stop = min(stop, evaluate(output["length"], total) - first)
            if start < stop:
                pieces[i].append(_frames(value, self.program.outputs[i].axis, start, stop))
        self._consumed += program.hop

    def _frame(self, output: Mapping[str, Any], consumed: int) -> int:
        """The number of the output frame that the call at ``consumed`` starts with."""
        return consumed * int(output["frames"]) // self.program.hop - int(output["delay"])

    def _complete(self, total: int) -> bool:
        for output in self.program.onnx["outputs"]:
            for waited in output.get("after", [output]):
                if self._frame(waited, self._consumed) < evaluate(waited["length"], total):
                    if not waited["frames"]:
                        raise InternalError(f"output '{output['name']}' never ends; please report this model.")
                    return False
        return True

    def _count_due(self, frames: int) -> list[int]:
        hop = self.program.hop
        later = self._consumed + (self._position + frames - self._consumed) // hop * hop
        return [
            0 if "tail" in o or "after" in o else max(0, self._frame(o, later)) - max(0, self._frame(o, self._consumed))
            for o in self.program.onnx["outputs"]
        ]

    def _joined(self, pieces: list[list[Array]]) -> list[Array]:
        ports = self.program.outputs
        empty = [np.empty(p.sized(0) if p.axis is not None else (0, *p.sized(0)), p.dtype) for p in ports]
        return [
            (got[0].copy() if len(got) == 1 else np.concatenate(got, axis=p.axis or 0)) if got else e
            for got, p, e in zip(pieces, ports, empty)
        ]

    def _named(self, results: list[Array]) -> Result:
        if len(results) == 1:
            return results[0]
        return {port.name: array for port, array in zip(self.program.outputs, results)}


def _frames(value: Array, axis: int | None, start: int, stop: int | None) -> Array:
    return value if axis is None else value[(slice(None),) * axis + (slice(start, stop),)]
