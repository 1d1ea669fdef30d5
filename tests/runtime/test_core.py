"""The core as a C++ library: what it links, that it does not allocate, and that no bytes make it crash."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from plans import SKIP, Plan, conv_plan, kernels, needs_core
from test_plans import ending, recurrence, skipping
from test_unit_plans import choosing

from runnel.runtime import build_core, native

HERE = Path(__file__).resolve().parent
pytestmark = pytest.mark.skipif(needs_core, reason=SKIP)
FROM_LIBC = {
    "free", "memcpy", "memset", "memmove", "memcmp", "posix_memalign", "vsnprintf", "__stack_chk_fail",
}  # fmt: skip
AT_OPEN = {  # what the loader of bundles asks for
    "__errno_location", "open", "close", "read", "fstat", "mmap", "munmap", "strerror", "qsort",
    "memchr", "strchr", "strcmp", "strlen", "snprintf", "__fxstat", "open64", "fstat64", "mmap64", "getauxval",
}  # fmt: skip
WORKERS = {  # where threads are asked for
    "pthread_create", "pthread_join", "pthread_mutex_lock", "pthread_mutex_unlock", "pthread_mutex_destroy",
    "pthread_cond_wait", "pthread_cond_broadcast", "pthread_cond_destroy", "sched_yield",
}  # fmt: skip
PAGING = {  # where weights pass through memory
    "clock_gettime", "madvise", "pread", "pread64", "poll", "syscall", "pthread_cond_init", "pthread_cond_signal",
    "pthread_cond_timedwait", "pthread_condattr_init", "pthread_condattr_setclock", "pthread_condattr_destroy",
    "pthread_mutex_init", "pthread_mutex_trylock", "sysconf",
}  # fmt: skip


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_the_library_asks_little_of_libc_and_exports_only_its_interface():
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", native.LIBRARY], capture_output=True, text=True, check=True
    )
    strong = {line.split()[-1].split("@")[0] for line in undefined.stdout.splitlines() if line.split()[0] == "U"}
    assert strong <= FROM_LIBC | AT_OPEN | WORKERS | PAGING
    defined = subprocess.run(["nm", "-D", "--defined-only", native.LIBRARY], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in defined.stdout.splitlines()}
    assert all(name.startswith("rn_") or name in ("_init", "_fini") for name in names), names


def test_crc32c_matches_the_rfc():
    for data, expected in [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (bytes(range(32)), 0x46DD794E)]:
        array = np.frombuffer(data, np.uint8)
        assert native.crc32c(array.ctypes.data, len(data)) == expected


def seeds() -> list[Plan]:
    upsampled = Plan(2)
    x = upsampled.buffer(2, 4)
    triple = upsampled.clock(3)
    y = upsampled.buffer(2, 9, made=triple, length=upsampled.least(triple, upsampled.const(1000)))
    upsampled.input(x)
    params = upsampled.constant([0, 0, 0, 0, 0, 0], np.int32)
    upsampled.call("upsample", 0, 0, [[1, x, 1], [0, params], [0, params], [2, y, 3]])
    upsampled.copy(triple, triple, y, upsampled.buffer(2, 9, made=triple), -2, 1, triple)
    upsampled.output(y, triple, triple)
    return [
        conv_plan(3, 4, 4, hop=5, stride=2, dilation=3, pads=(6, 6), rows=2)[0],
        conv_plan(3, 4, 4, hop=5, run=True, rows=4)[0],
        conv_plan(3, 4, 4, hop=2, dilation=2, pads=(4, 4), rows=2, apart=True)[0],
        conv_plan(3, 4, 4, apart=True, shared=True)[0],
        recurrence(3, [[1.0, 2.0]]),
        ending(2),
        skipping(2),
        upsampled,
        choosing()[0],
        choosing(place=-1)[0],
        choosing(second=128)[0],
    ]


def built(tmp_path: Path, name: str, flags: list[str]) -> Path:
    """A test program in C++ together with the core."""
    out = tmp_path / name
    command = [*build_core.find_compiler(), "-std=c++17", "-g", "-pthread", *flags, f"-I{build_core.CORE / 'include'}"]
    sources = [HERE / f"{name}.cc", *build_core.sources()]
    done = subprocess.run([*command, *map(str, sources), "-o", str(out)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the compiler lacks what this test needs: {done.stderr[-300:]}")
    return out


def write_seeds(tmp_path: Path) -> list[str]:
    paths = []
    for i, plan in enumerate(seeds()):
        path = tmp_path / f"{i}.plan"
        path.write_bytes(plan.words(dict.fromkeys(kernels()[1], 0)))
        paths.append(str(path))
    return paths


def test_mutated_plans_never_crash(tmp_path):
    fuzz = built(tmp_path, "fuzz_plan", ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
    done = subprocess.run(
        [fuzz, "4000", *write_seeds(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    accepted, ran = (int(n) for n in done.stdout.split())
    assert accepted > 100
    assert ran > 100


def test_nothing_is_allocated_after_opening(tmp_path):
    wraps = [f"-Wl,--wrap={f}" for f in ("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "_Znwm")]
    program = built(tmp_path, "count_allocations", ["-O2", *wraps])
    for seed in write_seeds(tmp_path):
        done = subprocess.run([program, seed], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["1", "0"]  # one block at open, none afterwards


@pytest.mark.parametrize(
    ("word", "value", "said"),
    [
        (1, 3, "schema 3"),
        (2, 7, "words"),
        (10, 64, "size"),
        (12, 3, "weights"),
        (13, 0, "hop"),
    ],
)
def test_a_broken_header_is_refused_in_words(word, value, said):
    from runnel.errors import BundleError

    class Changed(Plan):
        def words(self, entries):
            data = bytearray(super().words(entries))
            struct.pack_into("<q", data, word * 8, value)
            return bytes(data)

    plan, _ = conv_plan()
    with pytest.raises(BundleError, match=said):
        Changed(**vars(plan)).program()


@pytest.mark.parametrize(("op", "name"), [(5, "SUBGRAPH"), (77, "unknown op 77")])
def test_instructions_that_this_runtime_lacks_are_named(op, name):
    from runnel.errors import BundleError

    plan, _ = conv_plan()
    plan.code[0] = op
    with pytest.raises(BundleError, match=name):
        plan.program()
