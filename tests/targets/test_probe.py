"""Probing a machine: this one, one behind a fake ssh, and garbage from the far side."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel import targets
from runnel.compiler.codegen import Target
from runnel.errors import InputError
from runnel.tools import cli, probe

RPI5 = """runnel-probe 1
machine aarch64
host Pi5.local
bits 64
page 16384
cores 4
ram_kib 8256000
glibc glibc 2.36
model Raspberry Pi 5 Model B Rev 1.0
compatible raspberrypi,5-model-b brcm,bcm2712
parts 0x41 0xd0b 0x41 0xd0b 0x41 0xd0b 0x41 0xd0b
name
features fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
memory 134217728 bytes copied, 0.026000000 s
storage 268435456 bytes (268 MB, 256 MiB) copied, 3.05004 s, 88.0 MB/s
runnel-probe end
"""


def fake_ssh(folder: Path, body: str) -> None:
    """An ssh on PATH that writes its arguments and its input down and runs ``body``."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "ssh"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/args\ncat > {folder}/script\n{body}\n')
    program.chmod(0o755)


def test_this_machine(tmp_path: Path) -> None:
    found = probe.probe("local", sys.executable)
    target = probe.as_target(found, "here")
    assert target.cores >= 1 and target.ram_mib > 100 and target.memory_mb_s > 0 and target.storage_mb_s > 0
    assert target.page_kib << 10 == os.sysconf("SC_PAGE_SIZE")
    Target.of(target.triple, target.cpu, target.features)
    probe.write(target, tmp_path / "here.toml")
    again = targets.load(str(tmp_path / "here.toml"))
    assert {**again.to_dict(), "source": ""} == {**target.to_dict(), "source": ""}


def test_a_board_over_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "answer").write_text("Welcome!\n" + RPI5)
    fake_ssh(tmp_path, f"cat {tmp_path}/answer")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert cli.main(["targets", "probe", "ssh://pi@pi5.local:2222", "--storage", "/home/pi/a b's.bin"]) == 0
    assert "pi5-local.toml" in capsys.readouterr().out
    assert (tmp_path / "args").read_text().split("\n")[:-1] == ["-p", "2222", "-l", "pi", "--", "pi5.local", "sh -s"]
    assert (tmp_path / "script").read_text().startswith("FILE='/home/pi/a b'\"'\"'s.bin'\nQUICK=\n")
    board = targets.load("pi5-local")
    assert (board.cpu, board.page_kib, board.glibc, board.ram_mib) == ("cortex-a76", 16, "2.36", 8062)
    assert (board.storage_mb_s, board.memory_mb_s) == (88.0, 5162.2)
    assert Target.of(board.triple, board.cpu, board.features).has("dotprod")
    assert "Raspberry Pi 5" in board.summary


def test_the_script_runs_in_a_plain_shell_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    fake_ssh(tmp_path, f"cd {tmp_path}/cwd && exec sh -s < {tmp_path}/script")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    assert probe.as_target(probe.probe("ssh://board"), "board").cores >= 1
    assert not list((tmp_path / "cwd").iterdir())


def test_storage_is_measured_on_a_large_file_of_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool, body in {
        "find": "echo /usr/lib/large.so",
        "dd": f'echo "$@" >> {tmp_path}/read; echo "268435456 bytes (268 MB, 256 MiB) copied, 4 s, 67.1 MB/s" >&2',
    }.items():
        (tmp_path / tool).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert probe.as_target(probe.probe("local"), "here").storage_mb_s == 67.1
    reads = [line for line in (tmp_path / "read").read_text().splitlines() if "large.so" in line]
    assert reads and all("iflag=direct" in line for line in reads)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("machine riscv64", "no kernels for a 'riscv64'"),
        ("features ", "does not say its features"),
        ("page 8192", "'page_kib|page_kib = 8 is not right"),
        ("cores many", "'cores' is not right"),
        ("storage unreadable", "cannot be read there"),
    ],
)
def test_a_board_that_cannot_be_a_target(change: str, said: str) -> None:
    key = change.split(" ")[0] + " "
    text = "\n".join(change if line.startswith(key) else line for line in RPI5.split("\n"))
    with pytest.raises(InputError, match=said):
        probe.as_target(probe.parse(text.encode(), "board"))


def test_boards_with_accelerators_two_kinds_of_cores_and_32_bits() -> None:
    def told(**changes: str) -> targets.Target:
        known = probe.parse(RPI5.encode(), "board") | changes
        return probe.as_target(known)

    rock = told(parts="0x41 0xd05 0x41 0xd05 0x41 0xd0b", compatible="radxa,rock-5b rockchip,rk3588")
    assert rock.cpu == "cortex-a76" and rock.accelerators[0].kind == "npu"
    assert told(compatible="nvidia,p3450 nvidia,tegra210").accelerators[0].capability == "5.3"
    assert told(cuda="8.9, NVIDIA L4").accelerators[0].name == "NVIDIA L4"
    small = told(machine="armv7l", parts="0x41 0xc07", features="half thumb neon vfpv4 idiva")
    assert (small.arch, small.cpu) == ("armv7", "cortex-a7")
    assert told(bits="32").arch == "armv7"
    with pytest.raises(InputError, match="NEON"):
        told(machine="armv6l", features="half thumb vfp")
    with pytest.raises(InputError, match="SSE4.2"):
        told(machine="x86_64", features="sse2")


@pytest.mark.parametrize(
    "where", ["ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "http://x", "ssh://x:y", "ssh://a;b"]
)
def test_what_is_no_address(where: str) -> None:
    with pytest.raises(InputError, match="neither 'local' nor ssh"):
        probe.probe(where)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo 'Host key verification failed.' >&2; exit 255", "does not reach board: Host key verification failed"),
        ("head -c 3000000 /dev/zero", "did not answer as a Linux machine"),
        ("echo This account is not available.; exit 1", "it said: 'This account is not available.'"),
    ],
)
def test_a_far_side_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, said: str) -> None:
    fake_ssh(tmp_path, body)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with pytest.raises(InputError, match=said) as caught:
        probe.probe("ssh://board")
    assert str(caught.value).isprintable()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 14), st.text(max_size=20)), max_size=4))
def test_garbage_is_one_error(noise: bytes, changes: list[tuple[int, str]]) -> None:
    lines = RPI5.split("\n")
    for at, text in changes:
        lines[at] = lines[at].split(" ")[0] + " " + text
    for said in (noise, "\n".join(lines).encode("utf-8", "replace"), noise + b"\n" + RPI5.encode()):
        try:
            probe.as_target(probe.parse(said, "board"))
        except InputError as error:
            assert "\n" not in str(error)
