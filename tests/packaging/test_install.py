"""Editable and wheel installs in clean environments: what lands where, and what the board's half imports."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
LAPTOP_ONLY = ("tvm", "onnx", "onnxruntime")
BOARD = """
import sys
import numpy
before = set(sys.modules)
import runnel.runtime, runnel.runtime.io, runnel.runtime.program
heavy = {name.split(".")[0] for name in sys.modules} & {"tvm", "onnx", "onnxruntime", "torch", "matplotlib"}
assert not heavy, heavy
others = {n.split(".")[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names) - {"numpy", "runnel"}
assert not {n for n in others if not n.startswith("_")}, others
print(runnel.__file__)
"""


@contextmanager
def alone() -> Iterator[None]:
    """Builds of the tree share a folder: one at a time, of all processes that run tests."""
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / ".install-lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a new environment."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    return tmp_path / "venv" / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with alone():
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def installed(python: Path, cwd: Path) -> set[str]:
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))", cwd=cwd).strip()
    return {path.name for path in Path(site).iterdir()}


def test_the_wheel_is_for_any_python_of_this_platform(wheel: Path) -> None:
    assert wheel.name.startswith("runnel-")
    assert "-py3-none-linux_" in wheel.name


def test_the_wheel_holds_the_whole_tree_under_one_name(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"runnel"}
    modules = {f"runnel/{p.name}" for p in (ROOT / "runnel").glob("*.py")}
    for folder in ("compiler", "runtime", "models", "targets", "tools"):
        modules |= {f"runnel/{p.relative_to(ROOT)}" for p in (ROOT / folder).rglob("*.py")}
    modules -= {name for name in modules if name.startswith("runnel/tools/packaging/")}
    assert modules <= names
    assert {
        "runnel/py.typed",
        "runnel/runtime/_lib/librunnel.so",
        "runnel/targets/host.toml",
        "runnel/models/denoiser/denoiser.onnx",
        "runnel/models/denoiser/demo_noisy.wav",
    } <= names


def test_a_wheel_installs_runnel_and_numpy_and_nothing_else(wheel: Path, python: Path, tmp_path: Path) -> None:
    before = installed(python, tmp_path)
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    new = installed(python, tmp_path) - before - {"__pycache__"}
    board = ("numpy", "tomli") if sys.version_info < (3, 11) else ("numpy",)
    assert {name for name in new if not name.startswith(board)} == {
        "runnel",
        f"{wheel.name.rsplit('-', 3)[0]}.dist-info",
    }
    assert str(tmp_path) in run(python, "-c", BOARD, cwd=tmp_path)
    assert run(python.with_name("runnel"), "targets", cwd=tmp_path).startswith("target")
    sentence = subprocess.run(
        [python.with_name("runnel"), "inspect", "m.onnx"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert sentence.returncode == 2
    assert sentence.stderr.count("\n") == 1
    assert "pip install 'runnel[compiler]'" in sentence.stderr


def test_an_editable_install_finds_the_tree(python: Path, tmp_path: Path) -> None:
    with alone():
        run(python, "-m", "pip", "install", "--quiet", "--editable", ROOT, cwd=tmp_path)
    assert str(ROOT) in run(python, "-c", BOARD, cwd=tmp_path)
    assert not {"compiler", "runtime", "models", "targets", "tools"} & installed(python, tmp_path)
    assert run(python.with_name("runnel"), "--version", cwd=tmp_path).startswith("runnel ")
