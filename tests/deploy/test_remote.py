"""``--on ssh://`` of run, verify and bench, and connections that die."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from direct import current, verified
from test_push import pushed

import runnel
from runnel.tools.cli import main
from runnel.tools.deploy import ssh


def stream(path, x, **options):
    one = runnel.load(path).stream(**options)
    parts, tail = one.push(x), one.flush()
    outputs = runnel.load(path).outputs
    parts = parts if isinstance(parts, dict) else {outputs[0].name: parts}
    tail = tail if isinstance(tail, dict) else {outputs[0].name: tail}
    return {p.name: np.concatenate([parts[p.name], tail[p.name]], p.axis) for p in outputs}


def test_a_run_on_a_board(board, bundles, tmp_path, capfd):
    path = bundles("strided")
    x = np.random.default_rng(1).standard_normal((1, 3, 400)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    expected = stream(path, x)
    names = list(expected)
    words = [w for i, name in enumerate(names) for w in ("--out", f"{name}={tmp_path}/y{i}.npy")]
    run = ["run", str(path), "--on", "ssh://board:remote", "--in", str(tmp_path / "x.npy"), *words]
    assert main([*run, "--chunk", "7", "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures["frames"] == 400 and figures["chunk_frames"] == 7 and figures["state_bytes"] > 0
    for i, name in enumerate(names):
        got = np.load(tmp_path / f"y{i}.npy")
        np.testing.assert_array_equal(got, expected[name])
    folder = board.home / "remote"
    assert current(folder) is None  # it ran there and is not switched to
    assert not list(folder.glob("run-*"))
    # Files there, by board:
    (folder / "there.npy").write_bytes((tmp_path / "x.npy").read_bytes())
    run = ["run", str(path), "--on", "ssh://board:remote", "--in", "board:there.npy"]
    assert main([*run, "--out", f"{names[0]}=board:made.npy"]) == 0
    np.testing.assert_array_equal(np.load(folder / "made.npy"), expected[names[0]])
    assert "frames" in capfd.readouterr().out


def test_static_inputs_and_an_emulated_board(arm_board, bundles, tmp_path, capfd):
    path = bundles("conditioned", "aarch64")
    x = np.random.default_rng(1).standard_normal((1, 3, 40)).astype(np.float32)
    emb = np.ones((1, 5), np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "emb.npy", emb)
    one = runnel.load(path, backend="onnxruntime").stream(inputs={"emb": emb})
    expected = np.concatenate([one.push(x), one.flush()], 2)
    run = ["run", str(path), "--on", "ssh://board", "--in", f"{tmp_path}/x.npy", "--set", f"emb={tmp_path}/emb.npy"]
    assert main([*run, "--out", f"{tmp_path}/y.npy"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)
    capfd.readouterr()
    assert main(["verify", str(path), "--on", "ssh://board"]) == 0
    assert "verified: " in capfd.readouterr().out
    assert main(["bench", str(path), "--on", "ssh://board", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["p50"] > 0


def test_what_a_board_refuses_comes_back(board, bundles, tmp_path, capfd):
    np.save(tmp_path / "x.npy", np.full((40, 1, 6), np.nan, np.float32))
    run = ["run", str(bundles("gru")), "--on", "ssh://board:remote", "--in", f"{tmp_path}/x.npy"]
    assert main([*run, "--out", f"{tmp_path}/y.npy"]) in (1, 2)
    assert "runnel-run: " in capfd.readouterr().err
    assert not (tmp_path / "y.npy").exists()
    with pytest.raises(SystemExit):
        main([*run, "--on", "somewhere"])
    assert main([*run[:2], "--on", "serial:///dev/ttyUSB0", *run[4:]]) == 2
    assert "--on takes qemu or ssh" in capfd.readouterr().err


def test_a_host_key_that_changed_and_a_board_that_is_not_there(board, bundles, capsys):
    known = board.folder / "known"
    good = known.read_text()
    known.write_text(f"[127.0.0.1]:{board.port} {(board.folder / 'other.pub').read_text()}")
    try:
        assert main(["push", str(bundles("gru")), "ssh://board:x"]) == 2
        assert "Host key verification failed" in capsys.readouterr().err
    finally:
        known.write_text(good)
    assert main(["push", str(bundles("gru")), "ssh://board:1:x"]) == 2
    assert "ssh does not reach board" in capsys.readouterr().err
    assert not (board.home / "x").exists()


def test_nothing_of_a_connection_is_left(board, bundles, capsys, monkeypatch):
    rooms, make = [], ssh.tempfile.mkdtemp
    monkeypatch.setattr(ssh.tempfile, "mkdtemp", lambda *a, **k: rooms.append(make(*a, **k)) or rooms[-1])
    pushed(capsys, bundles("gru"), "ssh://board:left")
    assert rooms and not any(map(os.path.exists, rooms))
    files = {p.name for p in (board.home / "left").iterdir()}
    assert {name for name in files if not name.startswith("agent-")} == {"lock", "versions", "incoming", "current"}


def test_a_connection_that_dies(board, bundles, capsys):
    """The push itself is killed, at some moments of its way; what is there works, and the next one goes on."""
    ids = [pushed(capsys, bundles(name), "ssh://board:dies")["id"] for name in ("gru", "strided")]
    folder, rng, killed = board.home / "dies", random.Random(4), 0
    for turn in range(int(os.environ.get("RUNNEL_KILLS", "4"))):
        name = ("gru", "strided")[turn % 2]
        line = [sys.executable, "-m", "runnel", "push", str(bundles(name)), "ssh://board:dies"]
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        timer = threading.Timer(0.5 + rng.random() * 2.5, lambda p=process: p.poll() is None and end(p))
        timer.start()
        killed += process.wait() != 0
        timer.cancel()
        assert current(folder) in ids and verified(folder)
    assert pushed_when_free(capsys, bundles("gru"))["id"] == ids[0]
    assert killed > 0


def end(process):
    os.killpg(process.pid, signal.SIGKILL)


def pushed_when_free(capsys, bundle):
    """The agent of a push that was killed ends as soon as it sees that; until then the folder is in use."""
    until = time.monotonic() + 20
    while True:
        code = main(["push", str(bundle), "ssh://board:dies", "--json"])
        said = capsys.readouterr()
        if code == 0:
            return json.loads(said.out)
        assert "in use by another push" in said.err and time.monotonic() < until, said.err
        time.sleep(0.2)


def test_a_server_that_dies_is_told_and_the_push_resumed(bundles, host_programs, tmp_path, monkeypatch, capsys):
    from far_side import Sshd

    (tmp_path / "home").mkdir()
    server = Sshd(tmp_path / "ssh", tmp_path / "home")
    monkeypatch.setenv("PATH", server.path)
    folder = tmp_path / "home" / "m"

    def cut():
        until = time.monotonic() + 60
        while not list(folder.glob("incoming/*/runnel-run")) and time.monotonic() < until:
            time.sleep(0.0005)
        for pid in children(server.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=cut)
    thread.start()
    code = main(["push", str(bundles("denoiser")), "ssh://board:m"])
    thread.join()
    said = capsys.readouterr().err
    if code:
        assert "push again to resume" in said or "ssh does not reach" in said
        assert current(folder) is None
    until = time.monotonic() + 20
    while main(["push", str(bundles("denoiser")), "ssh://board:m"]) and time.monotonic() < until:
        time.sleep(0.2)
    assert verified(folder)
    server.close()


def children(pid):
    """Processes below one, the deepest first."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        below = [int(word) for word in file.read().split()]
    return [deeper for one in below for deeper in [*children(one), one]]
