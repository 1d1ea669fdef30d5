"""Bundles that are broken, altered, too new or for another machine; every entry is named when it is altered."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import RATE

import runnel
from runnel.errors import BundleError
from runnel.runtime.io import write_wav

Complaint = Callable[..., str]
KINDS = ("manifest.json", "manifest.sha256", "plan", "kernels", "weights", "streaming.onnx", "golden", "states")


@pytest.fixture(autouse=True)
def recording(tmp_path: Path) -> None:
    write_wav(tmp_path / "in.wav", np.zeros(4000, np.float32), RATE)


def run(complaint: Complaint, backend: str = "native") -> str:
    return complaint("run", "tiny.rnl", "--in", "in.wav", "--out", "out.wav", "--backend", backend)


def altered(path: Path, name: str) -> None:
    """Change the middle byte of an entry's payload."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    name_bytes, extra_bytes = struct.unpack_from("<2H", data, info.header_offset + 26)
    data[info.header_offset + 30 + name_bytes + extra_bytes + info.file_size // 2] ^= 1
    path.write_bytes(data)


def entries(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [n for n in archive.namelist() if not n.startswith(".pad/")]


def with_manifest(path: Path, **changes: Any) -> None:
    """The bundle with another manifest, written as a bundle writer would: all of its sums are right."""
    with zipfile.ZipFile(path) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    text = json.dumps(json.loads(parts["manifest.json"]) | changes).encode()
    parts["manifest.json"] = text
    if "manifest.sha256" in parts:
        parts["manifest.sha256"] = f"{hashlib.sha256(text).hexdigest()}\n".encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def test_the_tiny_bundle_has_every_kind_of_entry(made: Path) -> None:
    names = entries(made / "tiny.rnl")
    assert {n.split("/")[0] for n in names} == set(KINDS)


def test_every_altered_entry_is_refused_by_name(bundle: Path, complaint: Complaint) -> None:
    whole = bundle.read_bytes()
    for name in entries(bundle):
        bundle.write_bytes(whole)
        altered(bundle, name)
        said = complaint("verify", "tiny.rnl")
        assert name.replace(".sha256", ".json") in said or name in said
        assert "altered" in said or "damaged" in said


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("plan", "native"), ("kernels", "native"), ("weights", "native"), ("manifest.json", "native"),
        ("streaming.onnx", "onnxruntime"), ("states", "onnxruntime"), ("manifest.sha256", "onnxruntime"),
    ],
)  # fmt: skip
def test_what_a_backend_runs_is_checked_before_it_runs(
    bundle: Path, complaint: Complaint, kind: str, backend: str
) -> None:
    name = next(n for n in entries(bundle) if n.split("/")[0] == kind)
    altered(bundle, name)
    assert name.split("/")[0].split(".")[0] in run(complaint, backend)


def test_a_truncated_bundle_is_refused(bundle: Path, complaint: Complaint) -> None:
    whole = bundle.read_bytes()
    bundle.write_bytes(whole[: len(whole) // 2])
    assert "is not a whole bundle" in run(complaint)
    for size in [*range(1, len(whole), 1 << 14), len(whole) - 1]:
        bundle.write_bytes(whole[:size])
        with pytest.raises(BundleError):
            runnel.load(bundle)


def test_a_newer_schema_asks_for_an_update(bundle: Path, complaint: Complaint) -> None:
    with_manifest(bundle, schema=9)
    said = run(complaint)
    assert "schema 9" in said and "update runnel" in said


@pytest.mark.parametrize(
    ("target", "needed"),
    [({"arch": "riscv64", "features": []}, "is made for riscv64"), ({"features": ["quantum"]}, "with quantum")],
    ids=["architecture", "feature"],
)
def test_a_bundle_for_another_processor_is_refused(
    bundle: Path, complaint: Complaint, target: dict[str, Any], needed: str
) -> None:
    manifest = runnel.load(bundle).manifest
    with_manifest(bundle, target=manifest["target"] | target)
    said = run(complaint)
    assert needed in said and "compile the model for this machine" in said


@pytest.mark.parametrize(
    "command", [["run", "--in", "in.wav", "--out", "out.wav"], ["verify"], ["bench"]], ids=lambda c: c[0]
)
def test_what_is_no_bundle(tmp_path: Path, complaint: Complaint, command: list[str]) -> None:
    (tmp_path / "empty.rnl").write_bytes(b"")
    (tmp_path / "text.rnl").write_text("not a bundle\n")
    (tmp_path / "folder.rnl").mkdir()
    with zipfile.ZipFile(tmp_path / "zip.rnl", "w") as archive:
        archive.writestr("readme.txt", "a zip of something else")
    for name, said in [("none", "No such file"), ("empty", "is empty"), ("text", "not a whole bundle"),
                       ("folder", "directory"), ("zip", "manifest.json")]:  # fmt: skip
        assert said in complaint(command[0], f"{name}.rnl", *command[1:])
