"""Runs bundles made for ARM under qemu-user, where it and a C++ tool chain for the board are here."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runnel import targets
from runnel.runtime.build_core import CORE, FLAGS, sources
from runnel.runtime.bundle import Bundle
from runnel.tools import toolchain

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "streaming")]  # zoo.py, layers.py; nets.py
QEMU = {"aarch64": "qemu-aarch64", "armv7": "qemu-arm"}
MUSL = {"aarch64": "aarch64-linux-musl", "armv7": "arm-linux-musleabihf"}
Play = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="session")
def replayer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """The command that plays scripts on an emulated processor, by its architecture."""
    made: dict[str, list[str]] = {}

    def command(arch: str) -> list[str]:
        if arch not in made:
            target = targets.load(arch)
            qemu = shutil.which(QEMU[arch]) or shutil.which(QEMU[arch] + "-static")
            if qemu is None:
                pytest.skip(f"there is no {QEMU[arch]} here; install qemu-user")
            if importlib.util.find_spec("ziglang") is None:
                pytest.skip("there is no tool chain for a static program here; pip install ziglang")
            out = tmp_path_factory.mktemp("emulated") / f"replay-{arch}"
            chain = toolchain.find(target, f"{sys.executable} -m ziglang c++")
            flags = [MUSL[arch] if flag.startswith(MUSL[arch][:6]) else flag for flag in chain.flags]
            files = [HERE / "replay.cc", *sources()]
            command = [*chain.command, *flags, *FLAGS, "-static", "-s", f"-I{CORE / 'include'}", *map(str, files)]
            done = subprocess.run([*command, "-o", str(out)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            made[arch] = [qemu, str(out)]
        return made[arch]

    return command


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where runnel-run for boards is kept once it is built."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", os.environ.get("ZIG_GLOBAL_CACHE_DIR") or str(usual / "zig"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def play(replayer: Callable[[str], list[str]], tmp_path: Path) -> Play:
    """play(bundle, inputs, chunks) → the outputs, each whole along its time axis."""

    def played(bundle: Bundle, inputs: list[np.ndarray], chunks: list[int]) -> list[np.ndarray]:
        manifest = bundle.manifest
        name = manifest["target"]["name"]
        parts = {
            "plan": bundle.read("plan"), "weights": bundle.weights().tobytes(),
            "image": bundle.read(f"kernels/{name}"), "hash": bytes.fromhex(manifest["program_hash"]),
            "script": _script(manifest["inputs"], inputs, chunks),
        }  # fmt: skip
        for part, data in parts.items():
            (tmp_path / part).write_bytes(data)
        files = [str(tmp_path / part) for part in (*parts, "out")]
        command = [*replayer(manifest["target"]["arch"]), *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
        return _outputs(manifest["outputs"], (tmp_path / "out").read_bytes())

    return played


def _script(ports: list[dict], inputs: list[np.ndarray], chunks: list[int]) -> bytes:
    text = [np.int64(len(chunks)).tobytes()]
    start = 0
    for frames in chunks:
        text.append(np.int64(frames).tobytes())
        for port, x in zip(ports, inputs, strict=True):
            rate = port["per_tick"]
            part = range(start * rate, (start + frames) * rate)
            text.append(np.ascontiguousarray(x if port["axis"] is None else np.take(x, part, port["axis"])).tobytes())
        start += frames
    return b"".join(text)


def _outputs(ports: list[dict], data: bytes) -> list[np.ndarray]:
    pieces: list[list[np.ndarray]] = [[] for _ in ports]
    file = io.BytesIO(data)
    while head := file.read(8):
        for i, port in enumerate(ports):
            frames = int(np.frombuffer(head if i == 0 else file.read(8), np.int64)[0])
            shape = [frames if d is None else d for d in port["shape"]]
            if port["axis"] is None and not frames:
                continue
            raw = file.read(int(np.prod(shape)) * np.dtype(port["dtype"]).itemsize)
            pieces[i].append(np.frombuffer(raw, port["dtype"]).reshape(shape))
    return [np.concatenate(p, axis=port["axis"] or 0) for p, port in zip(pieces, ports, strict=True)]
