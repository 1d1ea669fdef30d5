"""Programs and streams: what every backend serves, and ``load``."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runnel.errors import BundleError, InputError, StreamError
from runnel.runtime.batch import Batch, StreamBatch
from runnel.runtime.bundle import Bundle
from runnel.runtime.feed import Feed

if TYPE_CHECKING:
    from runnel.runtime.runtime import Runtime

Array = NDArray[Any]
Result = Array | dict[str, Array]
BACKENDS = ("native", "onnxruntime")  # that a bundle has forms for
TFLITE = "tflite"  # runs files of its own
ON_NONFINITE = ("error", "zero", "reset")
FOREIGN_STATE = (
    "the saved state belongs to another program or backend, or is damaged; "
    "use the bundle and the backend it was saved with."
)


@dataclass(frozen=True)
class Port:
    """An input or output. shape: None where time is; axis: which one that is, None if there is no time.

    per_tick: frames of an input for one frame of the stream's clock; 0: a static input, which has no time. rate: frames
    a second, None where it is not known.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    axis: int | None
    per_tick: int = 1
    rate: float | None = None

    @staticmethod
    def of(described: Mapping[str, Any]) -> Port:
        shape, axis = tuple(described["shape"]), described["axis"]
        per_tick, rate = int(described.get("per_tick", 1)), described.get("rate")
        return Port(described["name"], np.dtype(described["dtype"]), shape, axis, per_tick, rate)

    def frames(self, array: Array) -> int:
        """The number of frames of an array."""
        return int(array.shape[self.axis or 0])

    def sized(self, frames: int) -> tuple[int, ...]:
        """The shape of ``frames`` frames."""
        return tuple(frames if d is None else d for d in self.shape)

    def __str__(self) -> str:
        dims = ", ".join("frames" if d is None else str(d) for d in self.shape)
        return f"{self.dtype}[{dims}]"


class Program(ABC):
    """A model ready to run: immutable, shared by streams and threads.

    hop: input frames of the largest step. latency_frames: input frames that an output waits for. state_bytes: of
    one stream. max_frames: the most frames of a stream, None for any number. shortest: the fewest that the offline
    model takes. lengths: it takes those whose remainder by the first is among the second. inputs, outputs: Ports.
    timed, statics: the inputs that frames come from, and those that have one value. rate: frames per second or
    None. manifest: the bundle's, as data. Where inputs have different rates, hop, latency_frames, max_frames and
    rate count ticks: a tick is the time in which every input brings a whole number of frames.
    """

    backend: str

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.manifest = manifest
        self.hop = int(manifest["hop"])
        self.latency_frames = int(manifest["latency_frames"])
        self.rate: float | None = manifest["clock"].get("rate")
        self.shortest = int(manifest["clock"].get("shortest", 0))
        period, rests = manifest["clock"].get("lengths", [1, [0]])
        self.lengths = int(period), frozenset(int(r) for r in rests)
        self.max_frames: int | None = manifest["clock"].get("max_frames")
        self.inputs = tuple(Port.of(p) for p in manifest["inputs"])
        self.outputs = tuple(Port.of(p) for p in manifest["outputs"])
        self.timed = tuple(p for p in self.inputs if p.per_tick)
        self.statics = tuple(p for p in self.inputs if not p.per_tick)

    @property
    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes of one stream's state."""

    @abstractmethod
    def stream(
        self, state: bytes | None = None, on_nonfinite: str = "error", inputs: Mapping[str, Any] | None = None,
        kv: str | None = None, position: int = 0,
    ) -> Stream:  # fmt: skip
        """A new stream, at its start or where ``state`` (of ``Stream.save``) was.

        inputs: {name: value} of the static inputs; a state brings its own, which these replace. Raises StreamError for
        a foreign state, or where a static input has no value.
        on_nonfinite: what a NaN or infinite input sample does: "error" refuses the push, "zero" takes it as 0, "reset"
        starts the stream again and takes it as 0. kv: what the caches of a decoder keep, within what was compiled (all
        of that where it is None); position: the number of the first token. Raises InputError for a kv that does not
        fit.
        """

    def check_no_caches(self, kv: str | None, position: int) -> None:
        """Raises StreamError where a stream is to have what only caches of keys and values have."""
        if kv is not None or position:
            raise StreamError(
                f"the {self.backend} backend has no caches of keys and values to choose of; leave kv and position out."
            )

    def batch(self, capacity: int) -> Batch:
        """Room for ``capacity`` streams that are pushed together. Raises StreamError for a capacity below 1."""
        return StreamBatch(self, capacity)

    def feed(self) -> Feed | None:
        """What lets inputs of different rates come in any amounts; None where they come together."""
        ahead = self.manifest["clock"].get("ahead")
        return None if ahead is None else Feed(self.timed, int(ahead))

    def check_statics(self, inputs: Mapping[str, Any] | None, whole: bool) -> dict[str, Array]:
        """The values of static inputs as arrays that fit. whole: none may be missing. Raises StreamError."""
        given = dict(inputs or {})
        if odd := sorted(map(str, given.keys() - {p.name for p in self.statics})):
            named = _listed(p.name for p in self.statics) or "none"
            raise StreamError(f"'{odd[0]}' is no static input of this program; those are: {named}.")
        if whole and (missing := [p for p in self.statics if p.name not in given]):
            named = ", ".join(f"'{p.name}' {p}" for p in missing)
            raise StreamError(
                f"the static inputs {named} have no value; open the stream with "
                f"program.stream(inputs={{'{missing[0].name}': array}})."
            )
        return {port.name: checked_static(port, given[port.name]) for port in self.statics if port.name in given}

    def __repr__(self) -> str:
        name = self.manifest.get("name", "")
        ports = f"{len(self.inputs)} inputs, {len(self.outputs)} outputs"
        return f"<Program '{name}' on {self.backend}: {ports}, hop {self.hop}>"


class Stream(ABC):
    """One stream of a program. Used by one thread at a time."""

    program: Program
    on_nonfinite: str

    @abstractmethod
    def push(self, x: Array | Mapping[str, Array], out: Result | None = None) -> Result:
        """Take any number of frames; give the output frames that are due.

        x: one array, or {input name: array}, of the input's dtype and shape with any number of frames on its time axis
        (the same for all inputs; where the program knows the rate of each, any number of each, and inputs may be left
        out: the program goes on as far as all have come);
        float64 is taken as float32, a non-contiguous array is copied. Returns an array (a dict if the program has
        several outputs) with 0 frames on the time axis when nothing is due; with ``out`` (arrays with room for what is
        due) the part of it that was written. Raises StreamError; the stream is then as it was.
        """

    @abstractmethod
    def check(self, x: Array | Mapping[str, Array]) -> None:
        """Raises the StreamError with which a push of ``x`` would be refused; changes nothing."""

    @abstractmethod
    def flush(self) -> Result:
        """End the stream; give the rest of the outputs. Raises StreamError for a length that the model refuses."""

    def gap(self, frames: int, policy: str = "zero") -> Result:
        """What a dropout of ``frames`` input frames gives: "zero" takes them as zeros, "reset" starts the stream again.

        Returns the outputs that become due, as push does. Raises StreamError for another policy or a negative number.
        """
        if frames < 0:
            raise StreamError(f"a gap of {frames} frames is not a gap; give 0 or more.")
        if policy not in ("zero", "reset"):
            raise StreamError(f"there is no gap policy '{policy}'; use zero or reset.")
        if policy == "reset":
            self.reset()
            frames = 0
        ports = self.program.timed
        return self.push({p.name: np.zeros(p.sized(frames * p.per_tick), p.dtype) for p in ports})

    def set(self, name: str, value: Any) -> None:
        """Give a static input another value, for all that is computed from now on; ``reset`` keeps it.

        value: an array of the input's dtype and shape. Raises StreamError where there is no such static input.
        """
        self._set_static(name, self.program.check_statics({name: value}, whole=False)[name])

    @abstractmethod
    def _set_static(self, name: str, value: Array) -> None:
        """Give a static input a value that was checked."""

    @abstractmethod
    def reset(self) -> None:
        """Back to the start."""

    @abstractmethod
    def save(self) -> bytes:
        """A snapshot for ``Program.stream(state=…)``."""

    @abstractmethod
    def restore(self, state: bytes) -> None:
        """Go on from a snapshot. Raises StreamError for one of another program; the stream is then as it was."""

    @abstractmethod
    def clone(self) -> Stream:
        """A second stream that goes on from here."""

    @property
    @abstractmethod
    def position(self) -> int:
        """Input frames taken so far."""

    def check_room(self, frames: int, start: int | None = None) -> None:
        """Raises StreamError when ``frames`` more than ``start`` (the position) are more than a stream may have."""
        most, start = self.program.max_frames, self.position if start is None else start
        if most is not None and start + frames > most:
            raise too_long(self.program, start, frames)

    def check_length(self) -> None:
        """Raises StreamError when the offline model takes no recording of this length."""
        if self.position < self.program.shortest:
            raise StreamError(
                f"the stream has {self.position} frames and the offline model takes no fewer than "
                f"{self.program.shortest}; push more before flush."
            )
        period, rests = self.program.lengths
        if self.position % period not in rests:
            more = next(n for n in range(1, period) if (self.position + n) % period in rests)
            raise StreamError(
                f"the stream has {self.position} frames, a length that the offline model does not take; push {more} "
                "more before flush."
            )


def too_long(program: Program, start: int, frames: int) -> StreamError:
    """The error of a push that passes the most frames of a stream."""
    why = program.manifest["clock"].get("max_frames_reason") or "the program says so"
    return StreamError(
        f"a push of {frames} frames to a stream of {start} passes its limit of {program.max_frames}: {why}; flush the "
        "stream, and reset it to start again."
    )


def load(
    path: str | os.PathLike[str], backend: str = "native", poison: bool = False, runtime: Runtime | None = None,
    ram: int | str | None = None, priority: int = 0,
) -> Program:  # fmt: skip
    """Open a bundle as a program, or with the backend tflite a TensorFlow Lite file.

    Raises BundleError for a broken or foreign file, InputError for an unknown backend or a package that is missing.
    poison: fill all memory that nobody has written with NaN, so that a read of it shows (for tests).
    runtime: its workers and budget of memory (native only); None: the caller's thread. ram: of ``Runtime(ram=ram)``.
    priority: among the programs that share the runtime's budget (``Runtime.load``).
    """
    if ram is not None:
        from runnel.runtime.runtime import Runtime

        if runtime is not None:
            raise InputError("ram is the runtime's where there is one; give Runtime(ram=…).")
        runtime = Runtime(ram=ram)
    if backend not in (*BACKENDS, TFLITE):
        raise InputError(f"there is no backend '{backend}'; use one of {', '.join((*BACKENDS, TFLITE))}.")
    if runtime is not None and (runtime.workers > 1 or runtime.budget) and backend != "native":
        raise InputError(f"workers and budgets of RAM are for the native backend; load '{path}' without them.")
    if priority and (runtime is None or runtime.budget is None):
        raise InputError(f"a priority is among programs that share memory; load '{path}' with Runtime(ram=…).load.")
    if backend == TFLITE:
        from runnel.runtime.backends.tflite import TfliteProgram

        return TfliteProgram.from_file(path)
    bundle = Bundle(path)
    if backend not in bundle.manifest["backends"]:
        why = bundle.manifest["native_refusal"] if backend == "native" else None
        has = ", ".join(bundle.manifest["backends"])
        raise BundleError(
            f"'{bundle.path}' has no form for the {backend} backend{f' ({why})' if why else ''}; use backend='{has}'."
        )
    if backend == "native":
        from runnel.runtime.backends.native import NativeProgram

        return NativeProgram.from_bundle(bundle, poison, runtime, priority)
    from runnel.runtime.backends.onnxruntime import OnnxProgram

    return OnnxProgram.from_bundle(bundle, poison)


def checked_inputs(program: Program, x: Array | Mapping[str, Array]) -> tuple[list[Array], int]:
    """The arrays of a push in the order of the program's inputs with time, and their frames. Raises StreamError."""
    ports = program.timed
    if isinstance(x, Mapping):
        known = {p.name for p in ports}
        if odd := sorted(map(str, known ^ x.keys())):
            got, needed = _listed(x.keys()), _listed(known)
            raise StreamError(f"push got the inputs {got} and needs {needed}; '{odd[0]}' does not match.")
        given = [x[p.name] for p in ports]
    elif len(ports) > 1:
        raise StreamError(f"the inputs are {_listed(p.name for p in ports)}; push a dict with an array for each.")
    else:
        given = [x]
    arrays = [checked_array(port, value) for port, value in zip(ports, given)]
    frames = {port.name: a.shape[port.axis] for port, a in zip(ports, arrays) if port.axis is not None}
    if len(set(frames.values())) > 1:
        said = ", ".join(f"'{name}' {n}" for name, n in frames.items())
        raise StreamError(f"the inputs have unlike numbers of frames ({said}); push as many of each.")
    return arrays, next(iter(frames.values()), 0)


def offered(program: Program, x: Array | Mapping[str, Array], on_nonfinite: str) -> tuple[dict[str, Array], bool]:
    """What a push brings to a feed, clean of values that are not finite, and whether the stream starts again for them.

    Raises StreamError.
    """
    if not isinstance(x, Mapping):
        raise StreamError(f"the inputs are {_listed(p.name for p in program.timed)}; push a dict with what has come.")
    if odd := sorted(map(str, x.keys() - {p.name for p in program.timed})):
        raise StreamError(f"'{odd[0]}' is no input with frames; those are {_listed(p.name for p in program.timed)}.")
    arrays = {port.name: checked_array(port, x[port.name]) for port in program.timed if port.name in x}
    bad = [name for name, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]
    if bad and on_nonfinite == "error":
        ports = [port for port in program.timed if port.name in arrays]
        raise StreamError(describe_nonfinite(ports, [arrays[port.name] for port in ports]))
    for name in bad:
        arrays[name] = np.where(np.isfinite(arrays[name]), arrays[name], 0).astype(arrays[name].dtype)
    return arrays, bool(bad) and on_nonfinite == "reset"


def checked_static(port: Port, value: Any) -> Array:
    """A static input's value, contiguous; a number serves where there is one element. Raises StreamError."""
    number = isinstance(value, (bool, int, float)) or (isinstance(value, np.ndarray) and value.ndim == 0)
    if number and int(np.prod(port.sized(0))) == 1:
        value = np.full(port.sized(0), value, port.dtype)
    array = np.array(checked_array(port, value), order="C").reshape(port.sized(0))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise StreamError(f"the static input '{port.name}' is not finite; give it numbers.")
    return array


def checked_array(port: Port, value: Any) -> Array:
    """``value`` as an array that fits the port. Raises StreamError saying what was got and needed."""
    if not isinstance(value, np.ndarray):
        raise StreamError(f"input '{port.name}' got {type(value).__name__} and needs a numpy array {port}.")
    if value.dtype != port.dtype:
        if value.dtype != np.float64 or port.dtype != np.float32:
            raise StreamError(
                f"input '{port.name}' got {value.dtype} and needs {port.dtype}; convert it with "
                f"x.astype('{port.dtype}') after scaling it as the model expects."
            )
        value = value.astype(np.float32)
    if value.ndim != len(port.shape) or any(d not in (None, n) for d, n in zip(port.shape, value.shape)):
        raise StreamError(f"input '{port.name}' got shape {list(value.shape)} and needs {port}; reshape it to that.")
    return value


def checked_out(program: Program, out: Result, due: list[int]) -> list[Array]:
    """The caller's arrays, in the order of the program's outputs. Raises StreamError where one does not fit."""
    ports = program.outputs
    if isinstance(out, np.ndarray) and len(ports) == 1:
        given = [out]
    else:
        if not isinstance(out, Mapping) or out.keys() != {p.name for p in ports}:
            raise StreamError(f"out needs an array for each of the outputs {_listed(p.name for p in ports)}.")
        given = [out[p.name] for p in ports]
    for port, array, frames in zip(ports, given, due):
        shape = array.shape
        fits = len(shape) == len(port.shape) and all(d is None or d == n for d, n in zip(port.shape, shape))
        if array.dtype != port.dtype or not fits or not array.flags.c_contiguous or not array.flags.writeable:
            raise StreamError(f"out for '{port.name}' is {array.dtype}{list(shape)} and must be a C-contiguous {port}.")
        if port.axis is not None and shape[port.axis] < frames:
            raise StreamError(f"out for '{port.name}' has room for {shape[port.axis]} frames and {frames} are due.")
    return given


def describe_nonfinite(ports: Sequence[Port], arrays: Sequence[Array]) -> str:
    """Which sample is not finite, for an error."""
    remedy = "clean it, or choose on_nonfinite='zero' or 'reset'"
    for port, array in zip(ports, arrays):
        if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            where = [int(i) for i in np.argwhere(~finite)[0]]
            return f"input '{port.name}' is {array[tuple(where)]} at {where}; {remedy}."
    return f"an input sample is not finite; {remedy}."


def check_policy(on_nonfinite: str) -> None:
    """Raises StreamError for an unknown policy."""
    if on_nonfinite not in ON_NONFINITE:
        raise StreamError(f"on_nonfinite is '{on_nonfinite}' and must be one of {', '.join(ON_NONFINITE)}.")


def _listed(names: Any) -> str:
    return ", ".join(f"'{n}'" for n in sorted(map(str, names)))
