"""What a board gets: the bundle without its laptop-only parts, the program that runs it, and the hashes of both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runnel.compiler.bundle import write_bundle
from runnel.compiler.bundle.write import COMPUTED_KEYS, Payload
from runnel.errors import InputError
from runnel.runtime.bundle import Bundle

CHUNK = 64 << 10  # bytes that are hashed and sent together; entries of a bundle start at multiples of it
MODEL, PROGRAM = "model.rnl", "runnel-run"
LAPTOP_ONLY = ("streaming.onnx", "states")


def board_form(bundle: Bundle) -> tuple[dict[str, Any], dict[str, Payload]]:
    """A bundle's manifest and entries without what only a laptop uses. Raises BundleError, InputError."""
    manifest = bundle.manifest
    if "native" not in manifest["backends"]:
        why = manifest["native_refusal"] or "it was compiled for onnxruntime"
        raise InputError(f"'{bundle.path}' has no form for boards ({why}); compile it with --backend native.")
    kernels, weights = f"kernels/{manifest['target']['name']}", manifest["weights"].get("layout")
    entries: dict[str, Payload] = {}
    for name in bundle.names:
        first = name.split("/")[0]
        other = (first == "kernels" and name != kernels) or (first == "weights" and name != f"weights/{weights}")
        if first not in LAPTOP_ONLY and not other:
            entries[name] = bundle.view(name).data
    kept = {key: value for key, value in manifest.items() if key not in COMPUTED_KEYS}
    return {**kept, "backends": ["native"], "onnx": None}, entries


def write_board_form(bundle: Bundle, out: Path) -> None:
    """Writes what a board gets of a bundle. Equal bundles give equal bytes. Raises BundleError, InputError."""
    manifest, entries = board_form(bundle)
    write_bundle(out, manifest, entries, bundle.signatures)


@dataclass(frozen=True)
class Version:
    """The files of a version. spec: their names, sizes and hashes, as the agent reads it."""

    files: tuple[Path, ...]
    spec: bytes
    places: tuple[tuple[Path, int, int], ...]  # of each part: file, offset, bytes

    @classmethod
    def of(cls, model: Path, program: Path) -> Version:
        """Hashes a bundle in its board form and a runnel-run."""
        text, places = ["runnel-version 1\n"], []
        for name, mode, path in ((MODEL, 644, model), (PROGRAM, 755, program)):
            text.append(f"file {name} {mode} {path.stat().st_size}\n")
            at = 0
            with path.open("rb") as file:
                while data := file.read(CHUNK):
                    text.append(hashlib.sha256(data).hexdigest() + "\n")
                    places.append((path, at, len(data)))
                    at += len(data)
        return cls((model, program), "".join(text).encode(), tuple(places))

    @property
    def id(self) -> str:
        """The version's name on the board."""
        return hashlib.sha256(self.spec).hexdigest()[:32]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, _, size in self.places)

    def bytes_of(self, parts: Iterable[int]) -> int:
        """Bytes of some parts. Raises InputError where there are no such parts."""
        chosen = list(parts)
        if any(part >= len(self.places) for part in chosen):
            raise InputError("what answers on the board is not runnel's agent; check the address.")
        return sum(self.places[part][2] for part in chosen)

    def read(self, parts: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        """Some parts, with their numbers."""
        for part in parts:
            path, at, size = self.places[part]
            with path.open("rb") as file:
                file.seek(at)
                yield part, file.read(size)
