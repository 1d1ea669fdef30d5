"""Instructions a frame on emulated ARM, against those recorded in docs/arm.md; RUNNEL_RECORD_ARM=1 records them, and
RUNNEL_RECORD_ARM=peer what onnxruntime takes as well."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import zoo

from runnel.errors import InputError
from runnel.runtime.bundle import Bundle
from runnel.tools import instructions

PAGE = zoo.ROOT / "docs" / "arm.md"
ROW = re.compile(r"^\| ([^|]+?) \| ([\d,]+) \| ([\d,]+|–) \| [^|]+ \|$", re.MULTILINE)
MORE, LESS = 1.1, 0.2  # of what is recorded: a tenth more is a step back, and far less is a record that is out of date


def recorded() -> dict[str, tuple[int, int | None]]:
    """(runnel's, onnxruntime's) instructions by the model's name."""
    rows = ROW.findall(PAGE.read_text())
    return {name: tuple(None if n == "–" else int(n.replace(",", "")) for n in row) for name, *row in rows}  # type: ignore[misc]


def record(name: str, own: float, peer: float | None) -> None:
    """Puts a row into the page."""
    rows = recorded() | {name: (round(own), round(peer) if peer is not None else recorded().get(name, (0, None))[1])}
    head = PAGE.read_text().partition("|---|---|---|---|\n")
    lines = [
        f"| {model} | {mine:,} | {f'{theirs:,}' if theirs else '–'} | {f'{mine / theirs:.2f}' if theirs else '–'} |"
        for model, (mine, theirs) in sorted(rows.items())
    ]
    PAGE.write_text(head[0] + head[1] + "\n".join(lines) + "\n")


def of_peer(model: str, path: Path) -> float:
    """onnxruntime on the model as it came, a frame or a window a run; the denoiser, which does not stream as it came,
    in its portable form."""
    if model == "denoiser":
        return instructions.per_run_of_peer(instructions.steady_form(path)) / int(Bundle(path).manifest["onnx"]["hop"])
    return instructions.per_run_of_peer(zoo.MODELS[model][0].read_bytes())


@pytest.mark.parametrize("model", zoo.MODELS)
def test_a_frame_takes_no_more_than_is_recorded(model: str, tmp_path: Path, cache: None) -> None:
    path = zoo.bundle(model, "rpi5", tmp_path)
    try:
        own = instructions.per_frame(path)
    except InputError as error:
        if "qemu" in str(error) or "compiler" in str(error):
            pytest.skip(str(error))
        raise
    if mode := os.environ.get("RUNNEL_RECORD_ARM"):
        record(model, own, of_peer(model, path) if mode == "peer" else None)
    known = recorded()[model][0]
    assert LESS * known < own <= MORE * known, f"{own:,.0f} instructions a frame, recorded {known:,}"


def test_counts_are_those_of_the_frames_alone(tmp_path: Path, cache: None) -> None:
    """Twice the frames take twice the instructions, whatever opening the bundle took."""
    path = zoo.bundle("fireredvad", "rpi5", tmp_path)
    try:
        few, many = instructions.per_frame(path, 2), instructions.per_frame(path, 6)
    except InputError as error:
        pytest.skip(str(error))
    assert few == pytest.approx(many, rel=0.02)
