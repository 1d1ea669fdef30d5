"""The service: its unit, what it tells the service manager, and what a push does where it does not start."""

from __future__ import annotations

import os
import socket
import subprocess
import time

import numpy as np
import pytest
from test_push import pushed

from runnel.tools.cli import main

SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$HOME/systemctl.log"
case "$*" in
*restart*)
    [ -e "$HOME/broken" ] && exit 1
    unit="$HOME/.config/systemd/user/runnel-service.service"
    command=$(sed -n 's/^ExecStart=//p' "$unit")
    cd "$(sed -n 's/^WorkingDirectory=//p' "$unit")" && eval "$command" ;;
*status*) echo 'it fell over' ;;
esac
"""


@pytest.fixture
def systemd(board):
    """A service manager on the board that runs what it starts to its end."""
    program = board.home / "bin" / "systemctl"
    before = program.read_text()
    program.write_text(SYSTEMCTL)
    yield board.home
    program.write_text(before)


def test_a_service_is_made_restarted_and_taken_back(systemd, bundles, capsys):
    np.save(systemd / "x.npy", np.zeros((40, 1, 6), np.float32))
    words = f"--in {systemd}/x.npy --out 'npy:{systemd}/y 100%.npy'"
    first = pushed(capsys, bundles("gru"), "ssh://board:service", "--service", words)
    assert first["service"] == "runnel-service.service"
    unit = (systemd / ".config/systemd/user/runnel-service.service").read_text()
    assert "Restart=on-failure\n" in unit and "WatchdogSec=" in unit and "WantedBy=default.target\n" in unit
    assert "@" not in unit and "y 100%%.npy" in unit
    log = (systemd / "systemctl.log").read_text().splitlines()
    assert log == ["--user daemon-reload", "--user enable runnel-service.service",
                   "--user restart runnel-service.service"]  # fmt: skip
    (systemd / "broken").touch()
    assert main(["push", str(bundles("strided")), "ssh://board:service"]) == 2
    said = capsys.readouterr().err
    assert "it fell over" in said or "does not start" in said
    assert (systemd / "service" / "current").readlink().name == first["id"]


def test_a_board_without_systemd(arm_board, bundles, capsys):
    words = ["push", str(bundles("gru", "aarch64")), "ssh://board:without", "--service", "--in x.npy"]
    assert main(words) == 2
    assert "has no systemd" in capsys.readouterr().err
    assert (arm_board.home / "without" / "current").is_symlink()


def test_the_program_tells_that_it_is_ready_and_alive(tmp_path, bundles, host_programs):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(10)
        environment = {**os.environ, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"}
        process = subprocess.Popen(
            [host_programs[0], "run", bundles("gru"), "--in", "raw:-"], env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert manager.recv(64) == b"READY=1"
        for _ in range(3):
            process.stdin.write(np.zeros((4, 6), np.float32).tobytes())
            process.stdin.flush()
            assert manager.recv(64) == b"WATCHDOG=1"
            time.sleep(0.12)
        manager.settimeout(0.2)
        with pytest.raises(TimeoutError):  # no input, no sign of life
            manager.recv(64)
        manager.settimeout(10)
        process.stdin.close()
        assert manager.recv(64) == b"STOPPING=1"
        assert process.wait(10) == 0


def test_no_watchdog_unless_asked(tmp_path, bundles, host_programs):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(10)
        environment = {**os.environ, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
        np.save(tmp_path / "x.npy", np.zeros((40, 1, 6), np.float32))
        line = [host_programs[0], "run", bundles("gru"), "--in", tmp_path / "x.npy"]
        assert subprocess.run(line, capture_output=True, env=environment, check=False).returncode == 0
        assert [manager.recv(64) for _ in range(2)] == [b"READY=1", b"STOPPING=1"]
