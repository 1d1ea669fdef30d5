"""The lazy face of the package, and which way imports point."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import runnel
from runnel import errors

ROOT = Path(__file__).resolve().parents[2]
LAPTOP_ONLY = {"tvm", "onnx", "onnxruntime", "matplotlib", "torch"}


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import runnel",
        "import runnel.runtime",
        "import runnel.runtime.io",
        "import runnel; runnel.load",
        "import runnel.tools.cli",
    ],
)
def test_the_boards_half_imports_nothing_of_the_laptops(statement: str) -> None:
    assert not modules_after(statement) & LAPTOP_ONLY


def test_the_face_has_the_errors_and_refuses_other_names() -> None:
    assert runnel.Refused is errors.Refused
    assert set(runnel.__all__) <= set(dir(runnel))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = runnel.nothing  # type: ignore[attr-defined]


def imported(path: Path) -> set[str]:
    """The full names that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize(
    ("folder", "never"),
    [
        ("runtime", ("compiler", "tools")),
        ("compiler", ("runtime", "tools")),
        ("targets", ("compiler", "runtime", "tools")),
    ],
)
def test_imports_point_one_way(folder: str, never: tuple[str, ...]) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        wrong = {n for n in imported(path) if n.startswith(tuple(f"runnel.{other}" for other in never))}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_runtime_never_imports_onnx_or_tvm_outside_its_onnxruntime_backend() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        found = {name.split(".")[0] for name in imported(path)} & LAPTOP_ONLY
        allowed = {"onnxruntime"} if path.parent.name == "backends" else set()
        assert found <= allowed, f"{path.relative_to(ROOT)} imports {sorted(found)}"
