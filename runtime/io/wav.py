"""RIFF WAVE files: PCM of 8, 16, 24 and 32 bits, float of 32 and 64, plain or WAVE_FORMAT_EXTENSIBLE.

Follows "Multimedia Programming Interface and Data Specifications 1.0" (1991) and Microsoft's WAVEFORMATEXTENSIBLE.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from runnel.errors import InputError
from runnel.files import replacing

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")  # after the two bytes of the format in a sub-format GUID
UNKNOWN_SIZE = 0xFFFFFFFF  # what a writer puts that could not seek back: the data goes on to the end of the file
HIGHEST_RATE = 1_000_000
CONVERT = "convert it, for example with: ffmpeg -i IN -c:a pcm_s16le OUT.wav"
Encoding = Literal["int16", "float32"]


@dataclass(frozen=True)
class Audio:
    """Sound. samples: (channels, frames) float32, full scale 1; rate: frames a second; notes: what was done to it."""

    samples: NDArray[np.float32]
    rate: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """The fmt chunk: PCM or FLOAT, and the layout of one frame."""

    tag: int
    channels: int
    rate: int
    bits: int

    def describe(self) -> str:
        kind = {PCM: "PCM", FLOAT: "float"}.get(self.tag, f"format tag {self.tag}")
        return f"{kind}, {self.bits} bits"


def read_wav(path: str | os.PathLike[str]) -> Audio:
    """The samples of a wav file, as they are in it. Raises InputError for what is not a whole wav file."""
    try:
        with open(path, "rb") as file:
            layout, data = _chunks(file, os.fstat(file.fileno()).st_size, f"'{os.fspath(path)}'")
    except OSError as error:
        raise InputError(f"'{os.fspath(path)}' cannot be read: {error.strerror}.") from error
    frame = layout.channels * layout.bits // 8
    values = _decode(data[: len(data) // frame * frame], layout)
    return Audio(np.ascontiguousarray(values.reshape(-1, layout.channels).T), layout.rate)


def _chunks(file: BinaryIO, size: int, name: str) -> tuple[Format, bytes]:
    """Walk the chunks up to the data; every size is checked against the file's own before anything is read."""
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        raise InputError(f"{name} is not a wav file: it does not begin with RIFF and WAVE; {CONVERT}.")
    layout: Format | None = None
    while len(header := file.read(8)) == 8:
        kind, length = header[:4], int.from_bytes(header[4:], "little")
        left = size - file.tell()
        if kind == b"data":
            if layout is None:
                raise InputError(f"{name} has its data before its format; {CONVERT}.")
            if length > left and length != UNKNOWN_SIZE:
                raise InputError(
                    f"{name} is truncated: its header promises {length} bytes of samples and {left} are there."
                )
            return layout, file.read(min(length, left))
        if length > left:
            raise InputError(f"{name} is truncated or damaged: a part of {length} bytes goes past the end of the file.")
        if kind == b"fmt ":
            layout = _format(file.read(length), name)
        else:
            file.seek(length, os.SEEK_CUR)
        file.seek(length % 2, os.SEEK_CUR)  # chunks begin at even offsets
    raise InputError(f"{name} has no samples: the file ends before its data.")


def _format(body: bytes, name: str) -> Format:
    if len(body) < 16:
        raise InputError(f"{name} is damaged: its format part has {len(body)} bytes and at least 16 are needed.")
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", body)
    if tag == EXTENSIBLE:
        if len(body) < 40 or body[26:40] != GUID_TAIL:
            raise InputError(f"{name} has an extensible format that is not known; {CONVERT}.")
        (tag,) = struct.unpack_from("<H", body, 24)
    layout = Format(tag, channels, rate, bits)
    if (tag, bits) not in _DECODERS:
        raise InputError(f"{name} holds samples of a kind that is not read ({layout.describe()}); {CONVERT}.")
    if channels == 0 or not 0 < rate <= HIGHEST_RATE or block != channels * bits // 8:
        raise InputError(f"{name} is damaged: {channels} channels, {rate} Hz and {block} bytes a frame cannot be.")
    return layout


def _int24(data: bytes) -> NDArray[np.int32]:
    octets = np.frombuffer(data, np.uint8).reshape(-1, 3)
    wide = np.zeros((len(octets), 4), np.uint8)
    wide[:, 1:] = octets  # in the upper three bytes, so that the sign is in place
    return wide.view("<i4")[:, 0]


_DECODERS = {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}


def _decode(data: bytes, layout: Format) -> NDArray[np.float32]:
    if layout.tag == FLOAT:
        with np.errstate(over="ignore"):
            return np.frombuffer(data, f"<f{layout.bits // 8}").astype(np.float32)
    if layout.bits == 8:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if layout.bits == 24:
        return (_int24(data).astype(np.float64) / 2**31).astype(np.float32)
    return (np.frombuffer(data, f"<i{layout.bits // 8}").astype(np.float64) / 2 ** (layout.bits - 1)).astype(np.float32)


def to_int16(samples: NDArray[np.float32]) -> tuple[NDArray[np.int16], int]:
    """Samples of full scale 1 as 16 bits, and how many of them were clipped. NaN becomes 0."""
    scaled = np.rint(np.nan_to_num(samples, nan=0.0).astype(np.float64) * 32768)
    clipped = np.clip(scaled, -32768, 32767)
    return clipped.astype("<i2"), int(np.count_nonzero(np.abs(samples) > 1))


def wav_header(channels: int, rate: int, data_bytes: int, encoding: Encoding = "int16") -> bytes:
    """The bytes before the samples of a wav file; a fact chunk stands in float files, as the format asks."""
    tag, bits = (FLOAT, 32) if encoding == "float32" else (PCM, 16)
    block = channels * bits // 8
    body = b"fmt " + struct.pack("<IHHIIHH", 16, tag, channels, rate, rate * block, block, bits)
    if tag == FLOAT:
        body += b"fact" + struct.pack("<II", 4, data_bytes // block)
    riff = 4 + len(body) + 8 + data_bytes + data_bytes % 2
    if riff > 0xFFFFFFFF:
        raise InputError("a wav file holds at most 4 GiB; write raw PCM with --out - instead.")
    return b"RIFF" + struct.pack("<I", riff) + b"WAVE" + body + b"data" + struct.pack("<I", data_bytes)


def interleave(samples: NDArray[np.float32], encoding: Encoding) -> tuple[bytes, int]:
    """(channels, frames) as the bytes of a wav file, and how many samples were clipped."""
    frames = np.ascontiguousarray(samples.T)
    if encoding == "float32":
        return frames.astype("<f4").tobytes(), 0
    values, clipped = to_int16(frames)
    return values.tobytes(), clipped


def write_wav(
    path: str | os.PathLike[str],
    samples: NDArray[np.float32] | Sequence[float],
    rate: int,
    encoding: Encoding = "int16",
) -> int:
    """Write samples, (channels, frames) or (frames), full scale 1; how many were clipped at 16 bits."""
    values = np.atleast_2d(np.asarray(samples, np.float32))
    data, clipped = interleave(values, encoding)
    with replacing(path) as file:
        file.write(wav_header(values.shape[0], rate, len(data), encoding) + data)
    return clipped
