"""The loader of bundles in the core: no bytes make it crash, nothing is allocated after it, threads share a program."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from bundles import repack, signed, write
from loading import BAD_BUNDLE, OK, load_in_core
from plans import SKIP, needs_core
from test_core import built

from runnel.runtime import build_core, native

pytestmark = pytest.mark.skipif(needs_core, reason=SKIP)


def test_mutated_bundles_never_crash(tmp_path):
    fuzz = built(tmp_path, "fuzz_bundle", ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
    seed = write(tmp_path / "seed.rnl")
    (tmp_path / "room").mkdir()
    done = subprocess.run(
        [fuzz, "1500", tmp_path / "room" / "m.rnl", seed], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    accepted, refused = (int(n) for n in done.stdout.split())
    assert accepted > 50
    assert refused > 500
    assert [p.name for p in (tmp_path / "room").iterdir()] == ["m.rnl"]


def test_nothing_is_allocated_after_loading(tmp_path):
    wraps = [f"-Wl,--wrap={f}" for f in ("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "_Znwm")]
    program = built(tmp_path, "count_allocations", ["-O2", *wraps])
    done = subprocess.run([program, write(tmp_path / "m.rnl")], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "0"


def test_threads_share_a_program(tmp_path):
    program = built(tmp_path, "share_program", ["-O1", "-fsanitize=thread", "-pthread"])
    done = subprocess.run(
        [program, write(tmp_path / "m.rnl")], capture_output=True, text=True, check=False, timeout=120
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run under this kernel")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["8"]


def test_workers_run_every_task_once(tmp_path):
    core = f"-I{build_core.CORE}"
    program = built(tmp_path, "workers", ["-O1", "-fsanitize=thread", core])
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run under this kernel")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(set(done.stdout.split())) == 1, done.stdout


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_the_library_has_no_exceptions_no_types_at_run_time_and_nothing_that_runs_before_main():
    listed = subprocess.run(["nm", native.LIBRARY], capture_output=True, text=True, check=True).stdout
    for name in (
        "__cxa_throw",
        "__gxx_personality",
        "_ZTI",
        "_ZTS",
        "_Znwm",
        "_ZdlPv",
        "__cxa_guard",
        "_GLOBAL__sub_I",
    ):
        assert name not in listed, name
    sections = subprocess.run(["nm", "-f", "sysv", native.LIBRARY], capture_output=True, text=True, check=True).stdout
    own = [line.split("|")[0].strip() for line in sections.splitlines() if line.strip().endswith((".bss", ".data"))]
    linkers = {"completed.0", "__bss_start", "_end", "_edata", "__dso_handle", "__TMC_END__"}
    assert set(own) <= linkers, own


@pytest.mark.parametrize(
    "text",
    [
        b'{"schema": 1, "schema": 1}',
        b'{"schema": NaN}',
        b'{"schema": 01}',
        b'{"schema": 1}x',
        b'{"schema": 1,}',
        b'{"schema": "\\ud800"}',
        b'{"schema": "\xc0\x80"}',
        b'{"schema": "\t"}',
        b'{"schema": ' + b"[" * 65 + b"]" * 65 + b"}",
        b"",
    ],
)
def test_the_manifest_is_strict_json(tmp_path, text):
    from bundles import pack

    path = tmp_path / "m.rnl"
    path.write_bytes(pack(signed(text)))
    code, said = load_in_core(path)
    assert code == BAD_BUNDLE
    assert "is not JSON" in said


def test_escapes_and_numbers_are_read(tmp_path):
    path = write(tmp_path / "m.rnl")

    def rename(described, entries):
        described["name"] = 'a\u00e9\U0001f600"\\\n'
        described["proof"] = {"limit": 1.5e-4, "large": 10**40, "small": -1e-300}

    repack(path, rename)
    assert b"\\ud83d" in path.read_bytes()
    assert load_in_core(path)[0] == OK
    assert json.dumps("\U0001f600") == '"\\ud83d\\ude00"'


def test_a_path_that_is_no_file(tmp_path):
    code, said = load_in_core(tmp_path)
    assert code == BAD_BUNDLE
    assert "Is a directory" in said
