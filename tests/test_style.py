"""What ruff and mypy do not see: modules stay short and say what they are, library code neither exits nor prints."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("runnel", "compiler", "runtime", "models", "targets", "tools")
MODULES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
SOURCES = sorted(p for folder in ("runtime",) for p in (ROOT / folder).rglob("*.[ch]*") if p.suffix in (".cc", ".h"))
LONGEST = 400
PRINTING = ("tools", "models")  # what a person runs


@pytest.mark.parametrize("path", [*MODULES, *SOURCES], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_is_longer_than_a_person_reads_at_once(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_say_what_they_are_and_libraries_stay_quiet(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), "a module begins with what it is"
    if path.relative_to(ROOT).parts[0] in PRINTING:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            quiet = name not in ("print", "exit", "quit", "os._exit") and (
                name != "sys.exit" or path.stem == "__main__"
            )
            assert quiet, f"line {node.lineno}: library code calls {name}"
