"""``runnel push`` and ``rollback`` over a real OpenSSH server."""

from __future__ import annotations

import json
import subprocess

import pytest

from runnel.tools.cli import main
from runnel.tools.deploy import programs


def pushed(capsys, *words):
    capsys.readouterr()
    assert main(["push", *map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def works(folder):
    current = folder / "current"
    return subprocess.run([current / "runnel-run", "verify", current / "model.rnl"], check=False).returncode == 0


def test_a_version_is_pushed_updated_and_rolled_back(board, bundles, capsys):
    first = pushed(capsys, bundles("gru"), "ssh://board:two/models")
    folder = board.home / "two" / "models"
    assert works(folder)
    assert first["known"] == 0 and not first["previous"]
    again = pushed(capsys, bundles("gru"), "ssh://board:two/models")
    assert again["sent"] == 0 and again["id"] == first["id"]
    second = pushed(capsys, bundles("strided"), "ssh://board:two/models")
    assert works(folder) and second["previous"] == first["id"]
    assert 0 < second["sent"] < 600_000 and second["known"] > second["sent"]  # the program was there
    assert main(["rollback", "ssh://board:two/models"]) == 0
    assert (folder / "current").readlink().name == first["id"] and works(folder)
    assert main(["rollback", "ssh://board:two/models"]) == 2
    assert "no version before" in capsys.readouterr().err


def test_an_emulated_arm_board(arm_board, arm_programs, bundles, capsys):
    assert arm_programs[1].stat().st_size <= programs.AGENT_BYTES
    first = pushed(capsys, bundles("gru", "aarch64"), "ssh://board")
    folder = arm_board.home / "runnel" / "gru"
    assert (folder / "current").readlink().name == first["id"]
    second = pushed(capsys, bundles("int8", "aarch64"), "ssh://board:runnel/gru")
    assert second["previous"] == first["id"]
    assert main(["rollback", "ssh://board"]) == 0
    assert (folder / "current").readlink().name == first["id"]


@pytest.mark.parametrize(("target", "said"), [("host", "is aarch64"), ("rpi5", "fullfp16")])
def test_what_the_board_cannot_run_is_refused_before_anything_is_sent(arm_board, bundles, capsys, target, said):
    assert main(["push", str(bundles("gru", target)), "ssh://board:none"]) == 2
    assert said in capsys.readouterr().err
    assert not (arm_board.home / "none").exists()
