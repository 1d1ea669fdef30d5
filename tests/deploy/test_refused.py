"""What a board cannot run, and what nobody should send it: refused by name, nothing run, nothing outside the folder."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from direct import DirectBoard, current, parcel, pushed, verified

from runnel.errors import InputError
from runnel.tools.cli import main
from runnel.tools.deploy import check
from runnel.tools.deploy.address import parse
from runnel.tools.deploy.agent import BoardError
from runnel.tools.deploy.channel import Messages, Pipe
from runnel.tools.elf_check import Elf

STATIC = Elf("aarch64", (), (), 65536, False, False)
NEEDS = check.Needs("m.rnl", "aarch64", "rpi5", ("neon", "dotprod"), 1 << 20, 1 << 20, 1 << 20, STATIC)
FOUND = {"machine": "aarch64", "bits": "64", "page": "16384", "features": "fp asimd asimddp", "available_kib": "500000",
         "glibc": "glibc 2.31", "disk": str(1 << 30)}  # fmt: skip


def test_a_board_that_fits():
    check.refuse_mismatch(NEEDS, FOUND, "board")
    check.refuse_mismatch(NEEDS, {**FOUND, "features": ""}, "board")  # it does not say


@pytest.mark.parametrize(
    ("needs", "found", "said"),
    [
        ({}, {"machine": "x86_64"}, "made for aarch64 .rpi5. and the board is x86_64"),
        ({}, {"bits": "32"}, "the board is armv7"),
        ({}, {"machine": "riscv64"}, "the board is riscv64"),
        ({}, {"features": "fp asimd"}, "with dotprod, which the board's lacks"),
        ({"program": replace(STATIC, arch="armv7")}, {}, "runnel-run is for armv7"),
        ({"program": replace(STATIC, align=4096)}, {}, "pages of 16384 bytes and the program is aligned to 4096"),
        ({"program": replace(STATIC, needed=("libc.so.6",), versions=("GLIBC_2.34", "GLIBC_2.17"))}, {},
         "needs glibc 2.34 and the board has 2.31"),
        ({"program": replace(STATIC, needed=("libc.so.6",), versions=("GLIBC_2.17",))}, {"glibc": ""}, "has none"),
        ({"memory": 1 << 30}, {}, "needs 1.00 GiB of memory and the board has 488.3 MiB"),
        ({"disk": 1 << 31}, {}, "needs 2.00 GiB of disk"),
    ],
)  # fmt: skip
def test_every_mismatch_by_name(needs, found, said):
    with pytest.raises(InputError, match=said) as caught:
        check.refuse_mismatch(replace(NEEDS, **needs), {**FOUND, **found}, "board")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "http://x", "ssh://board:../x", "ssh://board:99999",
             "ssh://board:a;b", "serial://ttyUSB0", "serial:///dev/x?baud=fast", "serial:///dev/x?speed=1",
             "serial:///dev/x?dir=$(x)", "ssh://board:a/../../b", "ssh://board:-x"],
)  # fmt: skip
def test_what_is_no_address(text):
    with pytest.raises(InputError):
        parse(text)


def test_addresses():
    assert parse("ssh://pi@board:2222:/opt/m").folder == "/opt/m"
    assert parse("ssh://pi@board:~/m/").folder == "m"
    assert parse("ssh://[fe80::1]:22").host == "fe80::1"
    assert parse("serial:///dev/ttyUSB0?baud=9600&dir=m") == parse("serial:///dev/ttyUSB0?dir=m&baud=9600")


def absolute(path, out):
    renamed(path, out, "/tmp/escaped")


def climbing(path, out):
    renamed(path, out, "../../escaped")


def renamed(path, out, name):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry))
        new.writestr(name, b"#!/bin/sh\ntouch escaped\n")


def linked(path, out):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry))
        link = zipfile.ZipInfo("golden/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        new.writestr(link, b"/etc/passwd")


def central(data, name):
    at = struct.unpack_from("<L", data, len(data) - 6)[0]
    while True:
        size, extra, comment = struct.unpack_from("<3H", data, at + 28)
        if data[at + 46 : at + 46 + size] == name:
            return at
        at += 46 + size + extra + comment


def overlapping(path, out):
    data = bytearray(path.read_bytes())
    plan, golden = central(data, b"plan"), central(data, b"golden/input_0.npy")
    data[golden + 42 : golden + 46] = data[plan + 42 : plan + 46]
    out.write_bytes(data)


def oversized(path, out):
    data = bytearray(path.read_bytes())
    at = central(data, b"golden/input_0.npy")
    struct.pack_into("<2L", data, at + 20, 0x7FFFFFFF, 0x7FFFFFFF)
    out.write_bytes(data)


def cut_off(path, out):
    out.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(absolute, "name that could leave"), (climbing, "name that could leave"), (linked, "link"),
     (overlapping, "golden/input_0.npy"), (oversized, "golden/input_0.npy"), (cut_off, "not a whole bundle")],
)  # fmt: skip
def test_a_hostile_bundle(tmp_path, bundles, host_programs, capsys, monkeypatch, spoil, said):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad.rnl"
    spoil(bundles("gru"), bad)
    assert main(["push", str(bad), "ssh://nowhere"]) == 2  # refused before anything is asked of the board
    assert said in capsys.readouterr().err
    # The same to a board whose laptop does not look: its own program refuses it, and the board stays as it was.
    folder = tmp_path / "board"
    board = DirectBoard(folder, host_programs[1])
    first = pushed(board, parcel(bundles("strided"), tmp_path / "good", host_programs[0]))
    from runnel.tools.deploy.version import Version

    version = Version.of(bad, host_programs[0])
    with board.agent("", None) as agent:
        missing = agent.begin(version.spec)
        agent.put(version.read(missing), lambda size: None)
        with pytest.raises(BoardError, match="not verified on the board.*" + said):
            agent.commit(True)
    assert current(folder) == first.id and verified(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.rnl", "board", "good"]
    assert not list((folder / "incoming").iterdir())


def test_wrong_offsets_in_the_plan(tmp_path, bundles, host_programs):
    """With every checksum made again, so that the plan itself is what is refused."""
    from runnel.compiler.bundle import write_bundle
    from runnel.compiler.bundle.write import COMPUTED_KEYS
    from runnel.runtime.bundle import Bundle

    bundle = Bundle(bundles("gru"))
    entries = {name: bundle.read(name) for name in bundle.names}
    words = bytearray(entries["plan"])
    refused = 0
    for at in range(64, min(len(words), 2048), 72):
        changed = bytearray(words)
        struct.pack_into("<q", changed, at // 8 * 8, 1 << 40)
        kept = {key: value for key, value in bundle.manifest.items() if key not in COMPUTED_KEYS}
        write_bundle(tmp_path / "bad.rnl", kept, {**entries, "plan": bytes(changed)})
        done = subprocess.run(
            [host_programs[0], "verify", tmp_path / "bad.rnl"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode in (0, 1, 2), done.stderr
        if "plan" in done.stderr:
            refused += 1
            with pytest.raises(InputError, match="plan"):
                parcel(tmp_path / "bad.rnl", tmp_path / "room", host_programs[0])
    assert refused > 5


HEAD = b"runnel-version 1\n"
ZERO = b"0" * 64 + b"\n"


@pytest.mark.parametrize(
    "spec",
    [b"", HEAD, HEAD + b"file ../../x 644 1\n" + ZERO + b"file runnel-run 755 1\n" + ZERO,
     HEAD + b"file /etc/x 644 1\n" + ZERO, HEAD + b"file model.rnl 4755 1\n" + ZERO,
     HEAD + b"file model.rnl 644 99999999999999999999\n" + ZERO,
     HEAD + b"file model.rnl 644 65537\n" + ZERO + b"file runnel-run 755 1\n" + ZERO,
     HEAD + b"file model.rnl 644 1\n" + ZERO + b"file runnel-run 755 1\n" + ZERO + b"more\n",
     HEAD + b"file model.rnl 644 1\n" + ZERO.upper().replace(b"0", b"G") + b"file runnel-run 755 1\n" + ZERO],
)  # fmt: skip
def test_a_hostile_list_of_files(tmp_path, host_programs, spec):
    board = DirectBoard(tmp_path / "board", host_programs[1])
    with board.agent("", None) as agent, pytest.raises(BoardError, match="not the list of a version's files"):
        agent.begin(spec)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["board", "lock"]


def test_links_in_the_store_are_not_followed(tmp_path, bundles, host_programs):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    what = parcel(bundles("gru"), tmp_path / "room", host_programs[0])
    folder = tmp_path / "board"
    (folder / "versions").mkdir(parents=True)
    (folder / "incoming" / what.version.id).mkdir(parents=True)
    (folder / "versions" / ("0" * 32)).symlink_to(outside)
    (folder / "incoming" / what.version.id / "model.rnl").symlink_to(outside / "kept")
    with pytest.raises(BoardError, match="cannot be written on the board"):
        pushed(DirectBoard(folder, host_programs[1]), what)
    assert (outside / "kept").read_text() == "kept" and len(list(outside.iterdir())) == 1
    (folder / "incoming").rename(folder / "moved")
    (folder / "incoming").symlink_to(outside)
    with pytest.raises(BoardError, match="'incoming' cannot be made"):
        pushed(DirectBoard(folder, host_programs[1]), what)
    assert [p.name for p in outside.iterdir()] == ["kept"]


def test_two_pushes_at_once(tmp_path, host_programs):
    board = DirectBoard(tmp_path / "board", host_programs[1])
    with board.agent("", None) as first:
        first.describe()  # it has the lock
        with board.agent("", None) as second, pytest.raises(InputError, match="in use by another"):
            second.describe()


def test_a_full_disk(tmp_path, bundles, host_programs):
    """A file system of 2 MiB in a name space of its own; where there may be none, a limit on files."""
    folder = tmp_path / "board"
    what = parcel(bundles("gru"), tmp_path / "room", host_programs[0])
    inner = f'mount -t tmpfs -o size=512k none {folder} && exec "$@"'
    small = ["unshare", "-Urm", "sh", "-c", inner, "sh"]
    folder.mkdir()
    if subprocess.run([*small, "true"], capture_output=True, check=False).returncode:
        small = ["sh", "-c", 'ulimit -f 100; exec "$@"', "sh"]
    with pytest.raises(BoardError, match="disk is full"):
        pushed(DirectBoard(folder, host_programs[1], before=small), what)
    limited = ["sh", "-c", 'ulimit -f 100; exec "$@"', "sh"]
    first = pushed(DirectBoard(folder, host_programs[1]), what)
    with pytest.raises(BoardError, match="disk is full"):
        pushed(DirectBoard(folder, host_programs[1], before=limited),
               parcel(bundles("strided"), tmp_path / "more", host_programs[0]))  # fmt: skip
    assert current(folder) == first.id and verified(folder)
    assert not list((folder / "incoming").iterdir())


def test_a_part_that_came_damaged(tmp_path, bundles, host_programs):
    what = parcel(bundles("gru"), tmp_path / "room", host_programs[0])
    board = DirectBoard(tmp_path / "board", host_programs[1])
    with board.agent("", None) as agent:
        missing = agent.begin(what.version.spec)
        parts = dict(what.version.read(missing[:2]))
        with pytest.raises(BoardError, match="part 0 of model.rnl came damaged"):
            agent.put(iter([(missing[0], parts[missing[0]][:-1] + b"\xff")]), lambda size: None)
        with pytest.raises(BoardError, match="not whole"):
            agent.commit(True)


def test_what_answers_is_no_agent(tmp_path):
    for said in (b"Welcome to the board!\n", b"\xff\xff\xff\xffo", b"\x02\0\0\0z!!", b""):
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        pipe = Pipe(process, lambda: "the board is gone")
        process.stdin.write(said)
        process.stdin.close()
        with pytest.raises(InputError, match="not runnel's agent|is gone"):
            Messages(pipe).receive()
        process.wait()
        process.stdout.close()


def test_the_agent_ends_on_a_message_that_is_too_large(tmp_path, host_programs):
    (tmp_path / "board").mkdir()
    done = subprocess.run(
        [host_programs[1], tmp_path / "board"], input=b"\xff\xff\xff\xffH", capture_output=True, timeout=20, check=False
    )
    assert done.returncode == 1 and not done.stdout
    assert os.listdir(tmp_path / "board") == ["lock"]


def test_without_shared_memory_nothing_changes(arm_sshd):
    """The emulated board, on which pushes are tested, has no /dev/shm."""
    assert not (arm_sshd.home.parent / "dev" / "shm").exists()
    assert Path(arm_sshd.home).exists()
