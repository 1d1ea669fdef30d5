"""What people write for kv: what it means, and one sentence for what means nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import runnel
from runnel.kv import chosen, parse

GOOD = (
    "full", "full=4096", "window=512", "sink=4,window=512", "sink=4,window=512,positions=contiguous",
    "window=8,keys=int8,values=int4", "heavy=8,window=8", "scissorhands=8,window=8,observe=30",
    "snap=8,window=9,observe=3", "retain=scores,budget=8,window=9", "merge=8,window=9,sink=1", "external=32",
    "window=8,spare=3", "sink=2,window=8,system=3,vision=20",
)  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_what_is_meant_is_said_again(text: str) -> None:
    spec = parse(text)
    assert parse(str(spec)) == spec
    for name in ("window", "sink", "observe", "spare"):
        if f"{name}=" in text:
            assert getattr(spec, name) == int(text.split(f"{name}=")[1].split(",")[0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no name=value"),
        ("windows=8", "'windows'"),
        ("window", "'window'"),
        ("window=-1", "whole number"),
        ("window=8,window=9", "twice"),
        ("window=99999999999", "2\\^24"),
        ("sink=4", "no window"),
        ("sink=4,window=0", "room for the token itself"),
        ("heavy=4", "room for the token itself"),
        ("heavy=0,window=4", "no tokens for their rank"),
        ("heavy=4,snap=4,window=4", "one policy"),
        ("full,window=4", "one policy"),
        ("external", "'external'"),
        ("external=0", "no slots"),
        ("window=8,keys=int3", "float32, float16, int8, int4"),
        ("window=8,positions=rank", "absolute, contiguous"),
        ("merge=4,window=8,keys=int8", "merge"),
        ("window=8,observe=2", "observe"),
        ("snap=8,window=4,observe=4", "fit its window"),
        ("heads=none.tsv,full=9,window=3", "cannot be read"),
        ("heads=none.tsv,window=3", "two kinds"),
        ("heavy=3,window=3,vision=4", "pool for vision"),
        ("full,budgets=none.tsv", "budgets a head"),
    ],
)
def test_one_sentence_for_what_means_nothing(text: str, says: str) -> None:
    with pytest.raises(runnel.InputError, match=says) as error:
        parse(text)
    assert str(error.value).count(". ") == 0 and str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("window=9", "sink=0|more than"),
        ("sink=5,window=8", "compile it again with sink=5"),
        ("full=8", "another policy"),
        ("sink=1,window=2,keys=int8", "other keys"),
        ("window=3,positions=contiguous", "other positions"),
    ],
)
def test_a_choice_stays_within_what_was_compiled(text: str, says: str) -> None:
    with pytest.raises(runnel.InputError, match=says):
        chosen(text, parse("sink=4,window=8,positions=absolute,keys=float32"))


def test_tables_of_heads(tmp_path: Path) -> None:
    table = tmp_path / "heads.tsv"
    table.write_text("0.9\t0.1\n0.2\t0.7\n")
    assert parse(f"heads={table},full=9,window=3").heads == ((1, 0), (0, 1))
    table.write_text("1 0\n1\n")
    with pytest.raises(runnel.InputError, match="unlike length"):
        parse(f"heads={table},full=9,window=3")
