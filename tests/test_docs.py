"""The pages say what is: generated tables are fresh, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from runnel.tools import coverage
from runnel.tools.cli import parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "models").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:runnel|compiler|runtime|models|targets|tools|tests|docs)/[\w./-]+)`")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[str]:
    """The lines of the page's shell blocks, continued lines joined."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.S):
        yield from block.replace("\\\n", " ").splitlines()


def test_the_table_of_ops_is_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert coverage.main(["--check"]) == 0, capsys.readouterr().err


def test_every_refusal_in_the_table_has_a_remedy() -> None:
    for row in coverage.refused_rows() + coverage.common_rows():
        assert all(row[:3]), row


def test_a_stale_table_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coverage, "ROOT", tmp_path)
    monkeypatch.setattr(coverage, "PAGE", tmp_path / "coverage.md")
    assert coverage.main(["--check"]) == 1
    assert coverage.main([]) == 0
    assert coverage.main(["--check"]) == 0
    (tmp_path / "coverage.md").write_text("old", "utf-8")
    assert coverage.main(["--check"]) == 1
    assert "python -m runnel.tools.coverage" in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    for path in PATH.findall(page.read_text("utf-8")):
        assert "<" in path or (ROOT / path).exists() or path.startswith("build/"), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page: Path) -> None:
    goals = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for line in blocks(page):
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words[:1] == ["make"]:
            assert set(words[1:]) <= goals, line
        elif words[:1] == ["runnel"]:
            parser().parse_args(words[1:])  # leaves with an error for what the command line does not take


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs" / "images" / "denoiser.png").stat().st_size < 300_000
