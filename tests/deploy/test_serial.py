"""Pushes over a serial line that drops, changes and delays bytes."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
from bad_line import BadLine
from direct import DirectBoard, current, parcel, pushed, verified
from far_side import arm_root

from runnel.errors import InputError
from runnel.tools import terminal
from runnel.tools.cli import main
from runnel.tools.deploy import push as deploy
from runnel.tools.deploy import serial, shell
from runnel.tools.deploy.address import SerialAddress

pytest.importorskip("serial")


@pytest.fixture
def line(tmp_path):
    lines = []

    def make(**options):
        (tmp_path / "home").mkdir(exist_ok=True)
        lines.append(BadLine(tmp_path / "home", **options))
        return lines[-1]

    yield make
    for one in lines:
        one.close()


@pytest.fixture
def home(tmp_path, bundles, host_programs):
    """A board's home that has a version of a model, and the agent: over a line goes only what is new."""
    import hashlib

    folder = tmp_path / "home" / "m"
    pushed(DirectBoard(folder, host_programs[1]), parcel(bundles("gru"), tmp_path / "gru", host_programs[0]))
    digest = hashlib.sha256(host_programs[1].read_bytes()).hexdigest()
    shutil.copy(host_programs[1], folder / f"agent-{digest[:16]}")
    return folder


def over(line, what, baud=460800):
    port = serial.Port(SerialAddress(line.device, baud, "m"))
    try:
        board = serial.SerialBoard(port, SerialAddress(line.device, baud, "m"), "m")
        return deploy.push(board, what, terminal.Progress())
    finally:
        port.close()


@pytest.mark.parametrize("loss", [{}, {"drop": 3e-4, "flip": 3e-4, "delay": 0.02, "seed": 1}], ids=["clean", "bad"])
def test_a_version_over_a_line(line, home, bundles, host_programs, tmp_path, loss):
    what = parcel(bundles("strided"), tmp_path / "strided", host_programs[0])
    far = line(**loss)
    done = over(far, what)
    assert current(home) == done.id == what.version.id and verified(home)
    assert done.known > done.sent > 0
    if loss:
        assert far.lost > 20
    assert main(["rollback", f"serial://{far.device}?dir=m&baud=460800"]) == 0
    assert current(home) == done.previous


def test_an_agent_whose_start_is_lost_is_started_again(line, home, bundles, host_programs, tmp_path, monkeypatch):
    """Once as a command with a byte less, once as a quotation without an end."""
    kept, spoilt = shell.Shell._guarded, [lambda text: text.replace(b"cksum", b"ksum"), lambda text: text[:-20]]

    def guarded(self, command):
        text = kept(self, command)
        return spoilt.pop()(text) if "exec ./agent" in command and spoilt else text

    monkeypatch.setattr(shell.Shell, "_guarded", guarded)
    done = over(line(), parcel(bundles("strided"), tmp_path / "strided", host_programs[0]))
    assert not spoilt and current(home) == done.id and verified(home)


def test_a_line_that_is_cut_off_goes_on_later(line, home, bundles, host_programs, tmp_path, monkeypatch):
    monkeypatch.setattr(serial, "SILENCE", 3.0)
    what = parcel(bundles("int8"), tmp_path / "int8", host_programs[0])
    before = current(home)
    far = line()
    timer = threading.Thread(target=lambda: cut_when_begun(far, home), daemon=True)
    timer.start()
    with pytest.raises(InputError, match="push again to resume"):
        over(far, what)
    timer.join()
    assert current(home) == before and verified(home)
    far.cut = False  # the agent there still has the line: it is told to give it back
    done = over(far, what)
    assert done.sent < what.version.bytes_of(range(len(what.version.places)))
    assert current(home) == what.version.id


def cut_when_begun(far, home):
    until = time.monotonic() + 60
    while not list(home.glob("incoming/*/model.rnl")) and time.monotonic() < until:
        time.sleep(0.001)
    far.cut = True


@pytest.mark.parametrize("loss", [0.0, 2e-4])
def test_a_file_over_a_login_shell(line, tmp_path, loss):
    far = line(drop=loss / 2, flip=loss / 2, seed=3)
    port = serial.Port(SerialAddress(far.device, 115200, None))
    data = bytes(range(256)) * 40 + b"\\0'\"\n.\n#"
    try:
        one = shell.Shell(port, 115200)
        one.wake()
        one.bring(data, "deep/er", "file", lambda stage, fraction=None: None)
        assert (tmp_path / "home/deep/er/file").read_bytes() == data
        assert [p.name for p in (tmp_path / "home/deep/er").iterdir()] == ["file"]
        # What an earlier try left is used where it is right, and nowhere else.
        (tmp_path / "home/deep/er/.more.0000000000").write_bytes(b"x" + data[:500])
        (tmp_path / "home/deep/er/.more.0000000100").write_bytes(b"other")
        one.bring(b"x" + data, "deep/er", "more", lambda stage, fraction=None: None)
        assert (tmp_path / "home/deep/er/more").read_bytes() == b"x" + data
        assert one.script("echo $((6 * 7)); echo äöü") == "42\näöü\n".encode()
    finally:
        port.close()


def test_a_login_is_not_answered(line):
    far = line(shell=["sh", "-c", "while :; do printf 'board login: '; read name; done"])
    port = serial.Port(SerialAddress(far.device, 115200, None))
    with pytest.raises(InputError, match="asks for a login"):
        shell.Shell(port, 115200).wake()
    port.close()


def test_no_line_and_no_shell(line, bundles, capsys, monkeypatch, host_programs):
    assert main(["push", str(bundles("gru")), "serial:///dev/no-such-line"]) == 2
    assert "cannot be opened" in capsys.readouterr().err
    monkeypatch.setattr(shell, "TRIES", 2)
    far = line(shell=["sleep", "100"])
    assert main(["push", str(bundles("gru")), f"serial://{far.device}"]) == 2
    assert "there is no shell" in capsys.readouterr().err


def test_cksum_is_that_of_posix():
    assert shell.cksum(b"") == "4294967295 0"
    assert shell.cksum(b"123456789") == "930766865 9"
    assert shell.cksum(Path(__file__).read_bytes()) != shell.cksum(b"")


def test_the_agent_is_brought_to_an_emulated_board_over_its_shell(tmp_path, bundles, arm_programs, busybox):
    """All of it on ARM: a login shell of busybox, the agent over it, then a version over frames."""
    (tmp_path / "arm").mkdir()
    enter = arm_root(tmp_path / "arm", busybox)
    far = BadLine(tmp_path / "arm" / "root" / "home", shell=[*enter, "exec sh -i"])
    try:
        what = parcel(bundles("gru", "aarch64"), tmp_path / "gru", arm_programs[0])
        done = over(far, what)
        assert current(tmp_path / "arm" / "root" / "home" / "m") == done.id
        assert done.sent == what.version.size
    finally:
        far.close()
