"""Frames at which strided layers complete something cost more: the report says how much, and a stream does no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nets import stack

import runnel


def strided(strides: list[int]) -> bytes:
    net, x = stack(4)
    for stride in strides:
        x = net.op("Relu", net.conv(x, 4, 4, 5, strides=[stride], pads=[2, 2]))
    return net.model(net.conv_transpose(x, 4, 4, 4, strides=[2]))


@pytest.mark.parametrize("strides", [[1], [2], [3, 2], [2, 3, 2]], ids=str)
def test_the_worst_frame_is_what_a_stream_does_at_most(strides: list[int], tmp_path: Path) -> None:
    report = runnel.inspect(strided(strides))
    info = runnel.compile(strided(strides), tmp_path / "m.rnl")
    stream = runnel.load(info.path).stream()
    x = np.ones((1, 4, 1), np.float32)
    done = []
    for _ in range(200):
        before = stream.counters["macs"]
        stream.push(x)
        done.append(stream.counters["macs"] - before)
    period = int(np.prod(strides))
    assert max(done[100:]) == report.macs["worst_frame"] == info.manifest["macs"]["worst_frame"]
    assert np.mean(done[100 : 100 + period * 4]) == report.macs["per_frame_streamed"]
    assert ("in the worst of" in report.text()) == (period > 1)
