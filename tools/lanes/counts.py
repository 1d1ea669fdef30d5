"""Counts of a step's instructions by where they lie in a bundle's image: under an emulator, or by the trap flag of
this very processor, which also runs what emulators lack (AVX-512)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from runnel.errors import InputError
from runnel.runtime import build_board, build_core
from runnel.runtime.build_core import CORE
from runnel.runtime.bundle import Bundle
from runnel.runtime.processor import processor
from runnel.tools import emulate, instructions

SOURCE = Path(__file__).with_name("single_step.cc")
FLAGS = ("-std=c++17", "-O2", "-pthread", f"-I{CORE / 'include'}")
EMULATED = re.compile(r"^0x[0-9a-f]+:\s+((?:[0-9a-f]{2,8}(?: |$))+)\s*(.*)$")
LISTED = re.compile(r"^\s*([0-9a-f]+):\t[0-9a-f ]+\t(.*)$")
KNOWN = 16
"""Bytes of code, found in one place of the image, that tell where it is mapped."""

Found = dict[int, tuple[int, str]]
"""By the offset in the image: how often an instruction ran, and the instruction."""


def emulated(bundle: Bundle, warm: int, frames: int) -> tuple[Found, int]:
    """What ``frames`` frames take after ``warm``, and the instructions outside of kernels. Raises InputError."""
    manifest = bundle.manifest
    command = _command(manifest)
    port = manifest["inputs"][0]
    elements = int(np.prod([d for d in port["shape"] if d is not None]))
    noise = np.random.default_rng(1).uniform(-1, 1, (warm + frames) * elements)
    data = (noise * (1 if port["dtype"].startswith("float") else 100)).astype(port["dtype"])
    line = [*command, "run", bundle.path, "--in", "raw:-", "--chunk", str(manifest["hop"])]
    image = image_of(bundle)
    total: Counter[int] = Counter()
    texts: dict[int, str] = {}
    outside = 0
    for sign, n in ((-1, warm), (1, warm + frames)):
        blocks, runs = instructions.blocks_of(line, data[: n * elements].tobytes())
        code = {at: _parsed(lines) for at, lines in blocks.items()}
        base = _base(image, {at: b"".join(raw for raw, _ in lines) for at, lines in code.items()})
        for at, count in runs.items():
            place = at - base
            if not 0 <= place < len(image):
                outside += sign * count * len(code[at])
                continue
            for raw, text in code[at]:
                total[place] += sign * count
                texts[place] = text
                place += len(raw)
    return {place: (count, texts[place]) for place, count in total.items() if count}, outside


def _command(manifest: dict[str, object]) -> list[str]:
    arch = str(manifest["target"]["arch"])  # type: ignore[index]
    if arch != processor()[0]:
        return instructions.processor_of(manifest)
    found = build_board.find_emulator(emulate.QEMU[arch])
    if found is None:
        raise InputError(f"qemu-{emulate.QEMU[arch]} is not installed; install qemu-user (apt-get install qemu-user).")
    return [found, "-cpu", "max", str(emulate.runner(arch))]


def _parsed(lines: list[bytes]) -> list[tuple[bytes, str]]:
    """(bytes, text) of each instruction of a block."""
    parsed: list[tuple[bytes, str]] = []
    for line in lines:
        match = EMULATED.match(line.decode())
        if match is None:
            raise InputError(f"the emulator writes instructions in a form that is not known: '{line.decode()}'.")
        words = match[1].split()
        wide = len(words[0]) > 2  # words of ARM, as numbers
        raw = b"".join(bytes.fromhex(word)[::-1] if wide else bytes.fromhex(word) for word in words)
        if match[2]:
            parsed.append((raw, match[2]))
        else:  # what is left of a long instruction
            parsed[-1] = (parsed[-1][0] + raw, parsed[-1][1])
    return parsed


def _base(image: bytes, blocks: dict[int, bytes]) -> int:
    """Where the image is mapped."""
    votes: Counter[int] = Counter()
    for at, code in blocks.items():
        if len(code) >= KNOWN and (place := image.find(code)) >= 0 and (at - place) % 4096 == 0:
            votes[at - place] += 1
    if not votes:
        raise InputError("no kernel ran.")
    return votes.most_common(1)[0][0]


def image_of(bundle: Bundle) -> bytes:
    """Kernels for whatever processor. Raises BundleError."""
    return bytes(bundle.read(f"kernels/{bundle.manifest['target']['name']}"))


def stepped(bundle: Bundle, warm: int, frames: int) -> tuple[Found, int]:
    """The same by the trap flag of this processor, for x86-64. Raises InputError, NoCompiler."""
    words = [str(_stepper()), str(bundle.path), str(warm), str(frames)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(done.stderr.strip() or f"the steps fail with exit code {done.returncode}.")
    image = image_of(bundle)
    rows = [
        (int(at, 16), int(count), bytes.fromhex(code))
        for at, count, code in map(str.split, done.stdout.split("\n")[:-1])
    ]
    base = _base(image, {at: code for at, _, code in rows})
    inside = {at - base: count for at, count, _ in rows if 0 <= at - base < len(image)}
    texts = _listing(image, inside)
    return {p: (n, texts[p]) for p, n in inside.items()}, sum(n for _, n, _ in rows) - sum(inside.values())


def _stepper() -> Path:
    """single_step.cc for this machine, made once for each of its versions. Raises NoCompiler."""
    command = [*build_core.find_compiler(), *FLAGS]
    digest = hashlib.sha256(repr(command).encode())
    for source in [SOURCE, *sorted(CORE.rglob("*.cc")), *sorted(CORE.rglob("*.h"))]:
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runnel"
    out = cache / f"single-step-{digest.hexdigest()[:16]}"
    if not out.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / "single-step"
            files = map(str, [SOURCE, *build_core.sources()])
            done = subprocess.run([*command, *files, "-o", str(made)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise build_core.NoCompiler(f"the compiler does not compile {SOURCE.name}:\n{done.stderr[-2000:]}")
            os.replace(made, out)
    return out


def _listing(image: bytes, wanted: Iterable[int]) -> dict[int, str]:
    """The instructions that begin at some offsets, as objdump writes them. Raises InputError."""
    if shutil.which("objdump") is None:
        raise InputError("objdump is not installed; install binutils.")
    texts: dict[int, str] = {}
    left = sorted(wanted)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image"
        file.write_bytes(image)
        listing = ["objdump", "-D", "-z", "-b", "binary", "-m", "i386:x86-64"]
        while left:  # from an instruction on until it loses its way in constants
            done = subprocess.run(
                [*listing, f"--start-address={left[0]}", f"--stop-address={left[-1] + 16}", str(file)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            for line in done.stdout.splitlines():
                if (match := LISTED.match(line)) is not None:
                    texts[int(match[1], 16)] = match[2].strip()
            left = [place for place in left if place not in texts]
    return {place: texts[place] for place in wanted}
