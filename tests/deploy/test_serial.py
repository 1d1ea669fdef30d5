"""Pushes over a serial line that drops, changes and delays bytes."""

from __future__ import annotations

import pytest
from bad_line import BadLine
from test_push import pushed, works

from runnel.tools.cli import main


@pytest.fixture
def line(tmp_path, host_programs):
    lines = []

    def make(**options):
        (tmp_path / "home").mkdir(exist_ok=True)
        lines.append(BadLine(tmp_path / "home", **options))
        return lines[-1]

    yield make
    for one in lines:
        one.close()


def test_a_clean_line(line, bundles, capsys, tmp_path):
    device = line().device
    first = pushed(capsys, bundles("gru"), f"serial://{device}?baud=230400")
    folder = tmp_path / "home" / "runnel" / "gru"
    assert works(folder)
    second = pushed(capsys, bundles("strided"), f"serial://{device}?baud=230400&dir=runnel/gru")
    assert second["previous"] == first["id"] and second["known"] > 0
    assert main(["rollback", f"serial://{device}?dir=runnel/gru"]) == 0
    assert (folder / "current").readlink().name == first["id"]
