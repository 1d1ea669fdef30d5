"""Writes ``model.rnl``: a zip with stored entries whose payloads start at multiples of 64 KiB, so that they map."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from runnel.compiler.bundle.checksum import crc32c
from runnel.errors import InternalError
from runnel.files import replacing

SCHEMA = 1
ALIGNMENT = 64 * 1024
SEGMENT_BYTES = 1024 * 1024  # the most bytes of one segment of the weights
MANIFEST = "manifest.json"
MANIFEST_SUM = "manifest.sha256"
MANIFEST_SIG = "manifest.sig"
PAD = ".pad/"
COMPUTED_KEYS = frozenset({"schema", "program_hash", "entries"})  # written here, whatever the caller gives
MANIFEST_KEYS = COMPUTED_KEYS | {
    "name", "target", "weights", "hop", "clock", "inputs", "outputs", "latency_frames", "mode", "window", "backends",
    "native_refusal", "onnx", "proof", "modes", "kv", "macs", "kernels", "made_by",
}  # fmt: skip
EXECUTED = ("plan", "kernels", "weights")  # the entries that decide what a step computes
PORTABLE = ("streaming.onnx", "states")  # those that decide it where there is no plan

Payload = bytes | bytearray | memoryview


def write_bundle(
    path: str | os.PathLike[str], manifest: Mapping[str, Any], entries: Mapping[str, Payload], signatures: bytes = b""
) -> dict[str, Any]:
    """Write a bundle and return its whole manifest.

    manifest: every key of MANIFEST_KEYS but the computed ones. ``manifest["weights"]["segments"]`` may give the
    segments in order of use as {"offset", "bytes"} (of ``entries["weights/<layout>"]``), with "crc32c" where the same
    weights were written before; without it they are cut every 1 MiB. entries: {path in the bundle: its bytes}. The
    order in the file is the order of the mapping; equal inputs give equal bytes. The entry manifest.sha256 protects
    the manifest as the manifest protects the others.
    signatures: of the manifest, the text of the entry manifest.sig, which is left out where it is empty.
    The file appears under its name only when it is complete.
    Raises InputError where it cannot be written there.
    """
    complete = _complete(manifest, entries)
    text = _text(complete)
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _store(archive, MANIFEST_SUM, f"{hashlib.sha256(text).hexdigest()}\n".encode())
        if signatures:
            _store(archive, MANIFEST_SIG, signatures)
        pads = 0
        for name, payload in {MANIFEST: text, **entries}.items():
            pads += _align(archive, file, name, len(payload), pads)
            _store(archive, name, payload)
    return complete


def manifest_text(manifest: Mapping[str, Any], entries: Mapping[str, Payload]) -> bytes:
    """The bytes of manifest.json that ``write_bundle`` writes for the same arguments."""
    return _text(_complete(manifest, entries))


def _text(complete: Mapping[str, Any]) -> bytes:
    return (json.dumps(complete, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n").encode()


def program_hash(digests: Mapping[str, str]) -> str:
    """What ties states to a program: sha256 of the lines "<path> <sha256>" of plan, kernels and weights, by path.

    Where there is no plan, it is the portable form and the first values of its states.
    """
    decisive = EXECUTED if "plan" in digests else PORTABLE
    lines = [f"{name} {digest}\n" for name, digest in sorted(digests.items()) if name.split("/")[0] in decisive]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _complete(manifest: Mapping[str, Any], entries: Mapping[str, Payload]) -> dict[str, Any]:
    missing, unknown = MANIFEST_KEYS - COMPUTED_KEYS - manifest.keys(), manifest.keys() - MANIFEST_KEYS
    if missing or unknown:
        raise InternalError(f"the manifest lacks {sorted(missing)} and has the unknown keys {sorted(unknown)}")
    for name in entries:
        if name in (MANIFEST, MANIFEST_SUM, MANIFEST_SIG) or name.startswith(PAD) or not _is_plain(name):
            raise InternalError(f"'{name}' cannot be the name of a bundle's entry")
    digests = {name: hashlib.sha256(payload).hexdigest() for name, payload in entries.items()}
    weights = dict(manifest["weights"])
    if weights:
        payload = entries[f"weights/{weights['layout']}"]
        weights["segments"] = _segments(memoryview(payload), weights.get("segments"))
    return {
        **manifest,
        "schema": SCHEMA,
        "program_hash": program_hash(digests),
        "entries": {name: {"sha256": digests[name], "bytes": len(payload)} for name, payload in entries.items()},
        "weights": weights,
    }


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and str(path) == name and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _segments(payload: memoryview, given: Sequence[Mapping[str, int]] | None) -> list[dict[str, int]]:
    if given is None:
        starts = range(0, len(payload), SEGMENT_BYTES)
        given = [{"offset": start, "bytes": min(SEGMENT_BYTES, len(payload) - start)} for start in starts]
    covered = 0
    segments = []
    for segment in given:
        offset, size = segment["offset"], segment["bytes"]
        if offset != covered or not 0 < size <= SEGMENT_BYTES:
            raise InternalError(
                f"the weights' segment at {offset} of {size} bytes does not follow the one before ({covered})"
            )
        covered += size
        known = segment.get("crc32c")
        segments.append(
            {"offset": offset, "bytes": size, "crc32c": crc32c(payload[offset:covered]) if known is None else known}
        )
    if covered != len(payload):
        raise InternalError(f"the weights' segments cover {covered} of {len(payload)} bytes")
    return segments


def _entry(name: str, size: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_STORED
    info.create_system = 3  # Unix: the attributes below are a mode
    info.external_attr = 0o100644 << 16
    info.file_size = size
    return info


def _header_bytes(name: str, size: int) -> int:
    zip64 = size * 1.05 > zipfile.ZIP64_LIMIT  # as zipfile decides it
    return 30 + len(name.encode()) + (20 if zip64 else 0)


def _align(archive: zipfile.ZipFile, file: BinaryIO, name: str, size: int, pads: int) -> int:
    """Store a dummy entry, if one is needed, so that the payload of ``name`` starts aligned; how many were stored."""
    start = file.tell()
    if (start + _header_bytes(name, size)) % ALIGNMENT == 0:
        return 0
    pad = f"{PAD}{pads}"
    filler = -(start + _header_bytes(pad, 0) + _header_bytes(name, size)) % ALIGNMENT
    _store(archive, pad, bytes(filler))
    return 1


def _store(archive: zipfile.ZipFile, name: str, payload: Payload) -> None:
    with archive.open(_entry(name, len(payload)), "w") as entry:
        entry.write(payload)
