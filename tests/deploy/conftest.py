"""Boards to push to, and bundles for them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [p for p in (str(HERE), str(HERE.parent / "board"), str(HERE.parent / "streaming")) if p not in sys.path]

from far_side import Sshd, apt_busybox, arm_root  # noqa: E402
from small_models import compiled  # noqa: E402

from runnel.errors import InputError  # noqa: E402
from runnel.tools.deploy import programs  # noqa: E402


@pytest.fixture(scope="session")
def cache():
    """Programs for boards are built when their sources changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(HERE.parents[1] / "build" / "cache"))
        yield


def built(arch):
    try:
        return programs.runner(arch), programs.agent(arch)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def host_programs(cache):
    """runnel-run and runnel-agent for this machine."""
    from runnel.runtime.bundle import processor

    return built(processor()[0])


@pytest.fixture(scope="session")
def arm_programs(cache):
    """runnel-run and runnel-agent for aarch64."""
    return built("aarch64")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """bundle(name, target) of small models, compiled once."""
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(name, target="host"):
        (folder / target).mkdir(exist_ok=True)
        return compiled(folder / target, name, target)

    return bundle


@pytest.fixture(scope="session")
def host_sshd(tmp_path_factory, host_programs):
    """This machine behind ssh."""
    folder = tmp_path_factory.mktemp("far")
    (folder / "home").mkdir()
    server = Sshd(folder / "ssh", folder / "home")
    yield server
    server.close()


@pytest.fixture(scope="session")
def busybox(tmp_path_factory):
    """A static busybox for arm64."""
    return apt_busybox(tmp_path_factory.mktemp("apt") / "own")


@pytest.fixture(scope="session")
def arm_sshd(tmp_path_factory, arm_programs, busybox):
    """An emulated ARM root behind ssh."""
    folder = tmp_path_factory.mktemp("arm")
    enter = arm_root(folder, busybox)
    server = Sshd(folder / "ssh", folder / "root" / "home", enter)
    yield server
    server.close()


@pytest.fixture
def board(host_sshd, monkeypatch):
    """ssh://board reaches this machine."""
    monkeypatch.setenv("PATH", host_sshd.path)
    return host_sshd


@pytest.fixture
def arm_board(arm_sshd, monkeypatch):
    """ssh://board reaches an emulated ARM root."""
    monkeypatch.setenv("PATH", arm_sshd.path)
    return arm_sshd
