"""The core built for boards: small, and nothing in it that a board may lack. Skipped where no tool chain is here."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel import targets
from runnel.errors import InputError
from runnel.runtime import native
from runnel.tools import elf_check, toolchain
from runnel.tools.commands import doctor


@pytest.fixture(scope="module", params=["rpi5", "armv7"])
def core(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[targets.Target, Path]:
    """A target and its librunnel."""
    target = targets.load(request.param)
    try:
        toolchain.find(target)
    except InputError as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp(target.name) / "librunnel.so"
    toolchain.build_core(target, out)
    return target, out


def test_the_core_is_small_and_runs_on_old_systems(core: tuple[targets.Target, Path]) -> None:
    target, path = core
    assert path.stat().st_size <= toolchain.CORE_BYTES
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    elf = elf_check.check(path, target)
    assert elf.arch == target.arch and {"libc.so.6"} <= set(elf.needed) <= {"libc.so.6", "libpthread.so.0"}
    assert elf.align >= 64 << 10 and not elf.exec_stack and not elf.text_relocations


def test_each_fault_is_named(core: tuple[targets.Target, Path]) -> None:
    target, path = core
    elf = elf_check.read(path.read_bytes())
    bad = replace(
        elf, needed=("libc.so.6", "libstdc++.so.6"), versions=("GLIBC_2.34", "GLIBC_2.99", "GLIBCXX_3.4"), align=4096,
        exec_stack=True, text_relocations=True,
    )  # fmt: skip
    said = "; ".join(elf_check.problems(bad, replace(target, glibc="2.34")))
    for part in ("libstdc++.so.6", "glibc 2.99", "GLIBCXX_3.4", "4096", "stack is executable", "patched"):
        assert part in said
    assert "2.34," not in said and "GLIBC_2.34" not in said
    with pytest.raises(InputError, match="it is for .*, and x86-64-v3 is x86_64"):
        elf_check.check(path, targets.load("x86-64-v3"))


@pytest.mark.skipif(not Path(native.LIBRARY).exists(), reason="the core is not built")
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_altered_files_are_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(Path(native.LIBRARY).read_bytes())
    (table,) = struct.unpack_from("<Q", whole, 32)
    places = st.integers(0, 63) | st.integers(table, table + 56 * 10) | st.integers(0, len(whole) - 1)
    for place in data.draw(st.lists(places, max_size=6)):
        whole[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(whole), 0, 3, 63, 64, 200, 4096, len(whole) // 2]))
    try:
        elf_check.read(bytes(whole[:cut]))
    except elf_check.NotElf as error:
        assert "\n" not in str(error)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_other_files_are_refused(data: bytes) -> None:
    for head in (b"", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01"):
        with pytest.raises(elf_check.NotElf):
            elf_check.read(head + data)


def test_a_named_compiler_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    board = targets.load("rpi5")
    assert toolchain.find(board, "sh -c").command == ("sh", "-c")
    monkeypatch.setenv(toolchain.NAMED, "sh")
    assert toolchain.find(board).command == ("sh",)
    for wrong in ("no-such-c++", "'", "-x"):
        with pytest.raises(InputError, match="not a program on this machine"):
            toolchain.find(board, wrong)
    with pytest.raises(InputError, match="does not compile"):
        toolchain.build_core(board, tmp_path / "librunnel.so", "false")
    assert not list(tmp_path.iterdir())


def test_where_there_is_none_the_ways_to_get_one_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(toolchain.NAMED, raising=False)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="pip install ziglang"):
        toolchain.find(targets.load("rpi5"))
    missing = {finding.name: finding for finding in doctor.findings() if finding.found is None}
    assert "pip install ziglang" in missing["tool chain for aarch64"].remedy
    assert "qemu-user" in missing["emulated aarch64"].remedy
