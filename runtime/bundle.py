"""Opens ``model.rnl``: checks it, maps it, and hands out its parts without copying them."""

from __future__ import annotations

import hashlib
import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runnel.errors import BundleError
from runnel.runtime import native
from runnel.runtime.manifest import parse_manifest
from runnel.runtime.processor import missing_features, processor
from runnel.runtime.zipmap import Entry, read_directory

ALIGNMENT = 64 * 1024
MANIFEST = "manifest.json"
MANIFEST_SUM = "manifest.sha256"
MANIFEST_SIG = "manifest.sig"
PAD = ".pad/"
MAX_MANIFEST = 64 << 20
MAX_SIGNATURES = 1 << 16
Bytes = NDArray[np.uint8]


class Bundle:
    """An opened bundle. Its arrays are views of the file, which stays mapped as long as one of them lives.

    Opening checks the directory, the manifest, the plan and the kernels; weights are checked by segment when they are
    asked for, other entries when they are read. Raises BundleError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        if self.path.endswith(".tflite"):
            raise BundleError(f"'{self.path}' is a TensorFlow Lite file; load it with backend='tflite'.")
        try:
            file = open(path, "rb")  # noqa: SIM115
        except OSError as error:
            raise BundleError(f"'{self.path}' cannot be opened: {error.strerror}; check the path.") from None
        with file:
            if os.fstat(file.fileno()).st_size == 0:
                raise BundleError(f"'{self.path}' is empty; copy or compile the bundle again.")
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise BundleError(f"'{self.path}' cannot be mapped ({error}); name a bundle's file.") from None
            self._data: Bytes = np.frombuffer(self._map, np.uint8)
            self._entries = read_directory(memoryview(self._map), self.path)
            self.manifest: dict[str, Any] = self._read_manifest()
            self._check_entries()
            self._checked: set[str] = set()
            for name in self._entries:
                if name == "plan" or name.startswith("kernels/"):
                    self._check(name)
            self._fd = os.dup(file.fileno())

    def __del__(self) -> None:
        if fd := getattr(self, "_fd", None):
            os.close(fd)

    @property
    def names(self) -> list[str]:
        """Entries beside the manifest, what protects it, and the padding, in the order of the file."""
        return [n for n in self._entries if n not in (MANIFEST, MANIFEST_SUM, MANIFEST_SIG) and not n.startswith(PAD)]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def signatures(self) -> bytes:
        """The text of manifest.sig, empty where the bundle is not signed. Raises BundleError."""
        entry = self._entries.get(MANIFEST_SIG)
        if entry is None:
            return b""
        if entry.size > MAX_SIGNATURES:
            raise BundleError(f"'{self.path}': entry '{MANIFEST_SIG}' is too large; sign the bundle again.")
        return self._bytes(entry).tobytes()

    @property
    def manifest_text(self) -> bytes:
        """The bytes of manifest.json, which are what is signed."""
        return self._bytes(self._entries[MANIFEST]).tobytes()

    def read(self, name: str) -> bytes:
        """A copy of an entry, after its checksum. Raises BundleError."""
        return self.view(name).tobytes()

    def view(self, name: str) -> Bytes:
        """An entry in the mapped file, after its checksum. Raises BundleError."""
        if name not in self._entries:
            raise BundleError(f"'{self.path}' has no entry '{name}'; compile the model again.")
        self._check(name)
        return self._bytes(self._entries[name])

    def weights(self) -> Bytes:
        """The weights in the mapped file, each segment checked. Raises BundleError."""
        described = self.manifest["weights"]
        if not described:
            return np.empty(0, np.uint8)
        entry = self._aligned(f"weights/{described['layout']}")
        data = self._bytes(entry)
        for segment in described["segments"]:
            start, size = segment["offset"], segment["bytes"]
            if native.crc32c(data.ctypes.data + start, size) != segment["crc32c"]:
                raise BundleError(
                    f"'{self.path}': entry '{entry.name}' is damaged between bytes {start} and {start + size}; "
                    "copy the bundle again."
                )
        return data

    def weights_entry(self) -> Entry:
        """Where the weights lie in the file, none of them read. Raises BundleError."""
        described = self.manifest["weights"]
        if not described:
            raise BundleError(f"'{self.path}' has no weights that could pass through memory; load it without a budget.")
        return self._aligned(f"weights/{described['layout']}")

    def kernels(self) -> Bytes:
        """The kernel image for this machine, mapped so that it may run. Raises BundleError."""
        self._check_processor()
        entry = self._aligned(f"kernels/{self.manifest['target']['name']}")
        if not entry.size:
            raise BundleError(f"'{self.path}': entry '{entry.name}' is empty; compile the model again.")
        try:
            mapped = mmap.mmap(
                self._fd, entry.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC, offset=entry.offset
            )
        except OSError as error:
            raise BundleError(
                f"'{self.path}': the system does not let code run from there ({error.strerror}); "
                "move the bundle to a folder that is not mounted noexec."
            ) from None
        return np.frombuffer(mapped, np.uint8)

    def verify(self) -> None:
        """Check every entry in full. Raises BundleError."""
        for name in self.names:
            self._check(name)
        self.weights()

    def _bytes(self, entry: Entry) -> Bytes:
        return self._data[entry.offset : entry.offset + entry.size]

    def _read_manifest(self) -> dict[str, Any]:
        entry = self._entries.get(MANIFEST)
        if entry is None or entry.size > MAX_MANIFEST:
            raise BundleError(
                f"'{self.path}' has no '{MANIFEST}', so it is no bundle; name one made by runnel compile."
            )
        text = self._bytes(entry).tobytes()
        given = self._entries.get(MANIFEST_SUM)
        if given is None:
            raise BundleError(f"'{self.path}': '{MANIFEST}' lacks its '{MANIFEST_SUM}'; compile the model again.")
        if bytes(self._bytes(given)[:66]) != f"{hashlib.sha256(text).hexdigest()}\n".encode():
            raise BundleError(
                f"'{self.path}': entry '{MANIFEST}' was altered (its sha256 differs); copy the bundle again."
            )
        return parse_manifest(text, self.path)

    def _check_entries(self) -> None:
        listed = self.manifest["entries"]
        for name in self.names:
            if name not in listed:
                raise BundleError(f"'{self.path}': entry '{name}' is not in the manifest; compile the model again.")
        for name, described in listed.items():
            entry = self._entries.get(name)
            if entry is None:
                raise BundleError(f"'{self.path}': entry '{name}' is missing; copy the bundle again.")
            if entry.size != described["bytes"]:
                raise BundleError(
                    f"'{self.path}': entry '{name}' has {entry.size} bytes and should have {described['bytes']}; "
                    "copy the bundle again."
                )

    def _check(self, name: str) -> None:
        if name in self._checked:
            return
        entry = self._entries[name]
        with memoryview(self._map) as whole:
            found = hashlib.sha256(whole[entry.offset : entry.offset + entry.size]).hexdigest()
        if found != self.manifest["entries"].get(name, {}).get("sha256"):
            raise BundleError(f"'{self.path}': entry '{name}' was altered (its sha256 differs); copy the bundle again.")
        self._checked.add(name)

    def _aligned(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise BundleError(f"'{self.path}' has no entry '{name}'; compile the model for this target.")
        if entry.offset % ALIGNMENT:
            raise BundleError(f"'{self.path}': entry '{name}' is not aligned to 64 KiB; write the bundle again.")
        return entry

    def _check_processor(self) -> None:
        target = self.manifest["target"]
        arch, flags = processor()
        if target["arch"] != arch:
            raise BundleError(
                f"'{self.path}' is made for {target['arch']} ({target['name']}) and this machine is {arch}; "
                "compile the model for this machine."
            )
        if lacking := missing_features(target["features"], flags):
            raise BundleError(
                f"'{self.path}' needs a processor with {', '.join(lacking)}, which this one lacks; "
                "compile the model for this machine."
            )
