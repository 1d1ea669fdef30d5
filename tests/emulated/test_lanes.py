"""A layer of each kind, and at night models of the zoo: no kernel that counts handles elements one at a time."""

from __future__ import annotations

import os
from pathlib import Path

import layers
import pytest

import runnel
from runnel.errors import InputError
from runnel.runtime.bundle import Bundle
from runnel.tools.benchmark.workloads import WORKLOADS
from runnel.tools.lanes.__main__ import bundle_of, told
from runnel.tools.lanes.kernels import Work, work

NIGHTLY = os.environ.get("RUNNEL_LANES") == "zoo"
ZOO = [
    "gtcrn",
    "silero-vad",
    "fireredvad hop 1",
    "sww",
    "sww int8",
    "kws",
    "kws int8",
    "vww96",
    "vww96 int8",
    "denoiser",
]


def counted(path: Path) -> list[Work]:
    try:
        return work(Bundle(path))[0]
    except InputError as error:
        if "qemu" in str(error) or "compiler" in str(error):
            pytest.skip(str(error))
        raise


def complaint(rows: list[Work]) -> str:
    return "\n".join(f"{row.ops} → {row.output}: {row.scalar_share:.0%} of {row.all:,.0f}" for row in rows)


@pytest.mark.parametrize("target", ["x86-64-v3", "rpi5"])
@pytest.mark.parametrize("name", layers.MODELS)
def test_no_kind_of_layer_is_scalar(name: str, target: str, tmp_path: Path, cache: None) -> None:
    path = tmp_path / "m.rnl"
    runnel.compile(layers.MODELS[name](), path, target=target, backend="native")
    rows = counted(path)
    assert len(rows) >= 6
    assert not (scalar := [row for row in rows if told(row)]), complaint(scalar)


@pytest.mark.skipif(not NIGHTLY, reason="minutes: RUNNEL_LANES=zoo")
@pytest.mark.parametrize("target", ["x86-64-v3", "rpi4", "rpi5"])
@pytest.mark.parametrize("name", ZOO)
def test_no_kernel_of_the_zoo_is_scalar(name: str, target: str, tmp_path: Path, cache: None) -> None:
    workload = next(w for w in WORKLOADS if w.name == name)
    rows = counted(bundle_of(workload, target, tmp_path))
    assert not (scalar := [row for row in rows if told(row)]), complaint(scalar)


def test_a_scalar_kernel_is_told(tmp_path: Path, cache: None) -> None:
    """A permutation of an axis is read element by element, whatever the processor."""
    net, x = layers.Net(), ""
    x = net.input([1, layers.TIME, 512])
    path = tmp_path / "m.rnl"
    model = net.model(net.op("Gather", x, net.const(net.rng.permutation(512)), axis=2))
    runnel.compile(model, path, target="x86-64-v3", backend="native")
    assert [row.ops for row in counted(path) if told(row)] == ["gather"]
