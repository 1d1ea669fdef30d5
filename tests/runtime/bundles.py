"""Bundles for tests: the hand-written convolution of plans.py, packed with the compiler's writer."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from plans import conv_plan, kernels

from runnel.compiler.bundle.write import write_bundle
from runnel.runtime.processor import processor


def manifest(plan: Any, **changes: Any) -> dict[str, Any]:
    full = plan.manifest() | {
        "target": {"name": "host", "arch": processor()[0], "os": "linux", "features": []},
        "weights": {"layout": "packed"}, "mode": "sequence", "window": None, "backends": ["native"],
        "native_refusal": None, "onnx": None, "proof": {}, "modes": {}, "kv": None, "macs": {}, "kernels": [],
        "made_by": "tests",
    }  # fmt: skip
    del full["program_hash"]
    return full | changes


def write(path: Path, extra: dict[str, bytes] | None = None, **changes: Any) -> Path:
    """A bundle with a convolution of 3 taps over 4 channels."""
    plan, _ = conv_plan()
    image, entries = kernels()
    parts = {"plan": plan.words(entries), "kernels/host": image, "weights/packed": bytes(plan.weights)}
    write_bundle(path, manifest(plan, **changes), parts | {"LICENSE": b"none"} | (extra or {}))
    return path


def repack(path: Path, edit: Any) -> Path:
    """Rewrite a bundle after ``edit`` changed its {name: bytes} and its manifest in place; checksums are made anew."""
    with zipfile.ZipFile(path) as archive:
        kept = [i for i in archive.infolist() if not i.filename.startswith(".pad/")]
        entries = {i.filename: archive.read(i) for i in kept if i.filename != "manifest.sha256"}
    described = json.loads(entries.pop("manifest.json"))
    edit(described, entries)
    for name, data in entries.items():
        if name in described.get("entries", {}):
            described["entries"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    path.write_bytes(pack(signed(json.dumps(described).encode()) | entries))
    return path


def signed(text: bytes) -> dict[str, bytes]:
    """A manifest and its checksum, as entries."""
    return {"manifest.json": text, "manifest.sha256": f"{hashlib.sha256(text).hexdigest()}\n".encode()}


def pack(entries: dict[str, bytes]) -> bytes:
    """A zip whose payloads are aligned to 64 KiB."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for i, (name, data) in enumerate(entries.items()):
            pad = f".pad/{i}"
            size = -(file.tell() + 30 + len(pad) + 30 + len(name.encode())) % 65536
            archive.writestr(zipfile.ZipInfo(pad), bytes(size))
            archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


def central(data: bytes, name: str) -> int:
    """Where the central directory's record of an entry starts."""
    at = struct.unpack_from("<L", data, len(data) - 6)[0]
    while data[at : at + 4] == b"PK\1\2":
        n, e, c = struct.unpack_from("<3H", data, at + 28)
        if data[at + 46 : at + 46 + n] == name.encode():
            return at
        at += 46 + n + e + c
    raise KeyError(name)


def patched(data: bytes, at: int, form: str, *values: Any) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


__all__ = ["central", "conv_plan", "manifest", "np", "pack", "patched", "repack", "signed", "write", "zlib"]
