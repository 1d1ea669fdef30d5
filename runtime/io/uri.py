"""Sources and sinks by URI: ``wav:PATH`` or a path in .wav, ``npy:PATH`` or a path in .npy, ``-`` for raw PCM s16le."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from runnel.errors import InputError
from runnel.files import replacing
from runnel.runtime.io.conform import conform, import_soxr
from runnel.runtime.io.wav import Audio, interleave, read_wav, to_int16, wav_header

Array = NDArray[Any]


class Port(Protocol):
    """An input or output of a program. shape: None where time is; axis: which one that is, None if there is no time."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int | None, ...]: ...
    @property
    def axis(self) -> int | None: ...
    @property
    def dtype(self) -> Any: ...


class Source(Protocol):
    """Where samples come from. notes: sentences on what was done to them; rate: frames a second, None where unknown."""

    notes: list[str]
    rate: int | None

    def chunks(self, frames: int | None) -> Iterator[Array]:
        """Arrays of the port's shape with at most ``frames`` frames each (None: all at once)."""
        ...


class Sink(Protocol):
    """Where outputs go. notes: sentences on what was done to them, whole after the end."""

    notes: list[str]

    def write(self, values: Array) -> None:
        """Take the next frames, an array of the port's shape."""
        ...


class ArraySource:
    """A whole input that is known beforehand."""

    def __init__(self, values: Array, axis: int, rate: int | None, notes: list[str]) -> None:
        self.values, self.axis, self.rate, self.notes = values, axis, rate, notes
        if values.shape[axis] == 0:
            raise InputError("the input has 0 frames; there is nothing to stream.")

    def chunks(self, frames: int | None) -> Iterator[Array]:
        total = self.values.shape[self.axis]
        for start in range(0, total, frames or total):
            index = [slice(None)] * self.values.ndim
            index[self.axis] = slice(start, start + (frames or total))
            yield np.ascontiguousarray(self.values[tuple(index)])


class PcmSource:
    """Raw PCM s16le, mono, as it arrives; resampled live where its rate is not the model's."""

    def __init__(self, file: BinaryIO, port: Port, rate: int | None, from_rate: int | None) -> None:
        self.file, self.port, self.rate, self.notes = file, port, rate or from_rate, list[str]()
        self.resampler: Any = None
        _channels(port, mono=True)
        if from_rate is not None and rate is not None and from_rate != rate:
            self.resampler = import_soxr(from_rate, rate).ResampleStream(from_rate, rate, 1, dtype="float32")
            self.notes = [f"resampled from {from_rate} Hz to {rate} Hz (soxr HQ)."]

    def chunks(self, frames: int | None) -> Iterator[Array]:
        arrived = 0
        while block := self.file.read(-1 if frames is None else 2 * frames):
            if len(block) % 2:
                self.notes.append("the raw PCM ended inside a sample; its last byte was dropped.")
            arrived += len(block) // 2
            samples = np.frombuffer(block[: len(block) // 2 * 2], "<i2").astype(np.float32) / np.float32(32768)
            if self.resampler is not None:
                samples = self.resampler.resample_chunk(samples)
            if samples.size:
                yield _shaped(samples[None], self.port)
        if arrived == 0:
            raise InputError("no samples came in on '-'.")
        if (
            self.resampler is not None
            and (rest := self.resampler.resample_chunk(np.empty(0, np.float32), last=True)).size
        ):
            yield _shaped(rest[None], self.port)


class WavSink:
    """A 16-bit wav file; its header is finished at the end."""

    def __init__(self, file: BinaryIO, port: Port, rate: int) -> None:
        self.file, self.port, self.rate, self.notes = file, port, rate, list[str]()
        self.written = self.clipped = 0
        self.outputs = _channels(port, mono=False)
        file.write(wav_header(self.outputs, rate, 0))

    def write(self, values: Array) -> None:
        assert self.port.axis is not None
        samples = np.moveaxis(values, self.port.axis, -1).reshape(self.outputs, -1)
        data, clipped = interleave(samples.astype(np.float32), "int16")
        self.file.write(data)
        self.written += len(data)
        self.clipped += clipped

    def finish(self) -> None:
        header = wav_header(self.outputs, self.rate, self.written)
        if self.written % 2:
            self.file.write(b"\0")
        self.file.seek(0)
        self.file.write(header)
        if self.clipped:
            self.notes.append(f"{self.clipped} output samples were clipped to 16 bits.")


class NpySink:
    """A numpy array of the whole output, saved at the end."""

    def __init__(self, port: Port) -> None:
        self.port, self.notes, self.parts = port, list[str](), list[Array]()

    def write(self, values: Array) -> None:
        self.parts.append(np.array(values))

    def finish(self, file: BinaryIO) -> None:
        axis = self.port.axis
        whole = np.concatenate(self.parts, axis) if axis is not None else self.parts[-1]
        np.save(file, whole, allow_pickle=False)


class PcmSink:
    """Raw PCM s16le, mono, flushed with every write."""

    def __init__(self, file: BinaryIO, port: Port) -> None:
        self.file, self.notes = file, list[str]()
        if _channels(port, mono=False) != 1:
            raise InputError(f"output '{port.name}' is not mono; write it to a file: --out OUT.npy")

    def write(self, values: Array) -> None:
        self.file.write(to_int16(values.reshape(-1))[0].tobytes())
        self.file.flush()


def _channels(port: Port, mono: bool) -> int:
    """How many channels of sound a port's frame holds."""
    sizes = [size for axis, size in enumerate(port.shape) if axis != port.axis]
    channels = int(np.prod([size for size in sizes if size is not None], dtype=np.int64))
    if port.axis is None or np.dtype(port.dtype) != np.float32 or channels > (1 if mono else 8) or None in sizes:
        raise InputError(
            f"'{port.name}', {list(port.shape)} {np.dtype(port.dtype)}, is not sound; use npy:PATH for it."
        )
    return channels


def _shaped(samples: NDArray[np.float32], port: Port) -> Array:
    """(channels, frames) as an array of the port's shape."""
    assert port.axis is not None
    sizes = [size for axis, size in enumerate(port.shape) if axis != port.axis]
    values = samples.reshape([size or 1 for size in sizes] + [samples.shape[1]])
    return np.ascontiguousarray(np.moveaxis(values, -1, port.axis))


def _wav_source(path: str, port: Port, rate: int | None, given: int | None, on_nonfinite: str) -> Source:
    channels = _channels(port, mono=False)
    audio = read_wav(path)
    if audio.samples.shape[1] == 0:
        raise InputError(f"'{path}' has 0 samples; there is nothing to stream.")
    if given is not None and given != audio.rate:
        audio = Audio(audio.samples, given, (f"the file says {audio.rate} Hz; --rate takes it as {given} Hz.",))
    audio = conform(audio, rate, channels, on_nonfinite)
    return ArraySource(_shaped(audio.samples, port), port.axis or 0, audio.rate, list(audio.notes))


def _npy_source(path: str, port: Port, rate: int | None, given: int | None, on_nonfinite: str) -> Source:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror or 'it is not a whole npy file'}.") from error
    except (ValueError, EOFError, MemoryError, OverflowError, SyntaxError) as error:
        raise InputError(f"'{path}' is not a numpy array that can be read: {str(error).splitlines()[0]}") from error
    if not isinstance(values, np.ndarray):
        raise InputError(f"'{path}' holds several arrays; save one with numpy.save.")
    fits = values.ndim == len(port.shape) and all(w is None or w == g for w, g in zip(port.shape, values.shape))
    if port.axis is None or not fits or values.dtype != np.dtype(port.dtype):
        needed = f"{['time' if size is None else size for size in port.shape]} {np.dtype(port.dtype)}"
        raise InputError(f"'{path}' is {list(values.shape)} {values.dtype}; input '{port.name}' takes {needed}.")
    return ArraySource(values, port.axis, given or rate, [])


def _pcm_source(path: str, port: Port, rate: int | None, given: int | None, on_nonfinite: str) -> Source:
    if given is None and rate is None:
        raise InputError("raw PCM does not say its rate; give it with --rate, such as --rate 16000.")
    return PcmSource(sys.stdin.buffer, port, rate, given)


@contextmanager
def _wav_sink(path: str, port: Port, rate: int | None) -> Iterator[Sink]:
    if rate is None:
        raise InputError("the rate of the output is not known; give it with --rate, or write it to a file in .npy.")
    _channels(port, mono=False)
    with replacing(path) as file:
        sink = WavSink(file, port, rate)
        yield sink
        sink.finish()


@contextmanager
def _npy_sink(path: str, port: Port, rate: int | None) -> Iterator[Sink]:
    with replacing(path) as file:
        sink = NpySink(port)
        yield sink
        sink.finish(file)


@contextmanager
def _pcm_sink(path: str, port: Port, rate: int | None) -> Iterator[Sink]:
    yield PcmSink(sys.stdout.buffer, port)


SOURCES: dict[str, Callable[[str, Port, int | None, int | None, str], Source]] = {
    "wav": _wav_source,
    "npy": _npy_source,
    "-": _pcm_source,
}
SINKS: dict[str, Callable[[str, Port, int | None], AbstractContextManager[Sink]]] = {
    "wav": _wav_sink,
    "npy": _npy_sink,
    "-": _pcm_sink,
}


def _split(uri: str) -> tuple[str, str]:
    """The scheme of a URI and the rest."""
    if uri == "-":
        return "-", ""
    scheme, colon, rest = uri.partition(":")
    if colon and scheme in SOURCES:
        return scheme, rest
    extension = uri.rpartition(".")[2].lower()
    if extension in SOURCES and "." in uri:
        return extension, uri
    raise InputError(f"'{uri}' is not known; give wav:PATH, npy:PATH, a file in .wav or .npy, or - for raw PCM s16le.")


def open_source(
    uri: str, port: Port, rate: int | None, given_rate: int | None = None, on_nonfinite: str = "error"
) -> Source:
    """The source that ``uri`` names, made to fit ``port`` at the model's ``rate`` (None: as it comes).

    given_rate: the rate of raw PCM. on_nonfinite: "error", or "zero" for silence in place of NaN and infinity.
    Raises InputError.
    """
    scheme, rest = _split(uri)
    return SOURCES[scheme](rest, port, rate, given_rate, on_nonfinite)


def open_sink(uri: str, port: Port, rate: int | None) -> AbstractContextManager[Sink]:
    """A context with the sink that ``uri`` names; its file appears when the context ends well. Raises InputError."""
    scheme, rest = _split(uri)
    return SINKS[scheme](rest, port, rate)
