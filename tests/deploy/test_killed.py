"""A push that is cut off anywhere leaves the old version or the new one working, and goes on when it is made again."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from direct import DirectBoard, current, parcel, pushed, verified

from runnel.errors import InputError
from runnel.runtime import build_board, build_core

HERE = Path(__file__).resolve().parent
CALLS = ("pwrite", "posix_fallocate", "ftruncate", "fsync", "fchmod", "rename", "symlink", "unlink", "unlinkat",
         "mkdir", "rmdir")  # fmt: skip
POINTS = 100


@pytest.fixture(scope="module")
def mortal_agent(tmp_path_factory):
    """The agent, which ends at a chosen change of a file."""
    out = tmp_path_factory.mktemp("mortal") / "runnel-agent"
    flags = [f for f in build_board.FLAGS if f not in ("-static", "-s", "-D_FILE_OFFSET_BITS=64")] + [
        f"-Wl,--wrap={call}" for call in CALLS
    ]
    sources = [*build_board.agent_sources(), HERE / "dies.cc"]
    line = [*build_core.find_compiler(), *flags, f"-I{build_core.CORE / 'include'}", *map(str, sources), "-o", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def parcels(tmp_path_factory, bundles, host_programs):
    """Three versions whose models differ in all and whose programs are the same."""
    room = tmp_path_factory.mktemp("parcels")
    return [parcel(bundles(name), room / name, host_programs[0]) for name in ("gru", "strided", "windowed")]


def holds(folder, old, new):
    assert current(folder) in (old, new)
    assert verified(folder)


def test_a_cut_of_the_power_at_a_hundred_points(tmp_path, mortal_agent, parcels, host_programs):
    first, second, _ = parcels
    begun = tmp_path / "begun"
    pushed(DirectBoard(begun, host_programs[1]), first)
    rng, died, switched = random.Random(1), 0, 0
    changes = changes_of(tmp_path / "count", begun, mortal_agent, second)
    assert changes > 40
    points = sorted(rng.randrange(1, changes + 1) for _ in range(POINTS))
    for turn, point in enumerate(points):
        folder = tmp_path / "board"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(begun, folder, symlinks=True)
        dying = DirectBoard(folder, mortal_agent, environment={**os.environ, "RUNNEL_DIES_AT": str(point)})
        try:
            pushed(dying, second)
        except InputError:
            assert dying.process.returncode == 99
            died += 1
        assert current(folder) in (first.version.id, second.version.id)
        switched += current(folder) == second.version.id
        if point != points[turn - 1]:
            holds(folder, first.version.id, second.version.id)
            pushed(DirectBoard(folder, host_programs[1]), second)
            assert current(folder) == second.version.id
    assert died > 0.9 * POINTS and 0 < switched < POINTS


def changes_of(folder, begun, agent, what):
    """How many changes of files a push makes: the first at which it does not end."""
    low, high = 1, 4096
    while low < high:
        middle = (low + high) // 2
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(begun, folder, symlinks=True)
        try:
            pushed(DirectBoard(folder, agent, environment={**os.environ, "RUNNEL_DIES_AT": str(middle)}), what)
            high = middle
        except InputError:
            low = middle + 1
    return low - 1


def test_killed_at_any_time(tmp_path, parcels, host_programs):
    """The same by the clock: the agent is killed, and with it what it runs, at any moment of pushes back and forth."""
    folder, rng = tmp_path / "board", random.Random(2)
    ids = [one.version.id for one in parcels]
    pushed(DirectBoard(folder, host_programs[1]), parcels[0])
    killed = 0
    for turn in range(20):
        board = DirectBoard(folder, host_programs[1])
        timer = threading.Timer(rng.random() * 0.3, lambda board=board: board.process and board.process.kill())
        before = current(folder)
        timer.start()
        try:
            pushed(board, parcels[turn % 3])
        except InputError:
            killed += 1
        timer.cancel()
        assert current(folder) in (before, ids[turn % 3])
        assert verified(folder)
    assert killed > 0
