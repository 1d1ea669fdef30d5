"""Makes a small arm64 Debian root with Python, numpy, LiteRT and onnxruntime from the registries; installs nothing."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from runnel.runtime import build_board

LIBRARIES = ("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5")
WHEELS = ("numpy==2.2.6", "ai-edge-litert==2.3.0", "flatbuffers", "backports.strenum", "typing_extensions", "tqdm",
          "onnxruntime==1.31.1")  # fmt: skip
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64", "any")
# The emulator opens a path in the root first. Without this, libraries read of ARM cores in the files of the machine
# below, and fall over. It is a core without dot products: what is emulated has them, as the kernel's bits say.
PROCESSOR = """processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd03
CPU revision\t: 4
"""
CPU = "cortex-a76"  # XNNPACK gives wrong codes on all that qemu 7.2 emulates as "max"
MINUTES = 5  # for the registries to answer


class Unreachable(Exception):
    """The registries, or the tools that read them, are not here."""


def cached() -> Path:
    """The root, made at the first call on a machine. Raises Unreachable."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runnel"
    root = cache / f"arm64-root-{recipe}"
    if not root.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / "root"
            _make(made, Path(folder))
            try:
                os.replace(made, root)
            except OSError:  # another process was faster
                if not root.exists():
                    raise
    return root


def command(root: Path) -> list[str]:
    """Python of the root under the emulator; PYTHONPATH names root/site. Raises Unreachable."""
    qemu = build_board.find_emulator("aarch64")
    if qemu is None:
        raise Unreachable("there is no qemu-aarch64 here; install qemu-user")
    return [qemu, "-cpu", CPU, "-L", str(root), str(next((root / "usr" / "bin").glob("python3.*")))]


def _make(root: Path, work: Path) -> None:
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unreachable(f"there is no {tool} here; an arm64 root is made of Debian's packages")
    debs = work / "debs"
    for folder in (debs, work / "lists" / "partial", work / "cache" / "archives" / "partial"):
        folder.mkdir(parents=True)
    options = [
        "-o", "APT::Architecture=arm64", "-o", "APT::Architectures::=arm64", "-o", f"Dir::State::Lists={work}/lists",
        "-o", f"Dir::Cache={work}/cache", "-o", "Dir::State::status=/dev/null", "-o", "APT::Sandbox::User=",
    ]  # fmt: skip
    _call(["apt-get", "-qq", *options, "update"])
    listed = _call(["apt-cache", *options, "depends", "python3-minimal"])
    found = re.search(r"\b(python3\.(\d+))-minimal\b", listed)
    if found is None:
        raise Unreachable("the package lists for arm64 have no python3-minimal")
    python = found[1]
    names = (f"{python}-minimal", f"lib{python}-minimal", f"lib{python}-stdlib", *LIBRARIES)
    _call(["apt-get", "-qq", *options, "download", *names], debs)
    root.mkdir()
    for deb in sorted(debs.glob("*.deb")):
        _call(["dpkg-deb", "-x", str(deb), str(root)])
    if not (root / "lib").exists():  # where all of it lies in /usr
        (root / "lib").symlink_to("usr/lib")
    cores = root / "sys" / "devices" / "system" / "cpu"
    for folder in (root / "proc", cores):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(PROCESSOR)
    for name in ("possible", "present", "online"):
        (cores / name).write_text("0\n")
    wheels = [f"--platform={name}" for name in PLATFORMS] + [f"--python-version=3.{found[2]}", "--only-binary=:all:"]
    _call([sys.executable, "-m", "pip", "-q", "download", "--no-deps", *wheels, "-d", str(work / "wheels"), *WHEELS])
    for wheel in (work / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / "site")


def _call(words: list[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            words, cwd=folder, capture_output=True, text=True, check=False, timeout=60 * MINUTES,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{words[0]} had no answer in {MINUTES} minutes") from None
    if done.returncode:
        raise Unreachable(f"{words[0]} failed: {(done.stderr.strip() or done.stdout.strip())[-300:]}")
    return done.stdout
