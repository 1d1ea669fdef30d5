"""The attention kernel against numpy, on rings that wrap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_harness import aligned, value

from runnel.compiler.codegen import KernelModule, Target, frame_elements
from runnel.compiler.codegen.loader import load_image_for_tests
from runnel.compiler.lowering.frame import Access, FrameNode, Group
from runnel.compiler.streaming.count import Count

LENGTH = Count.time()


def rings(keys: np.ndarray, slots: int, until: int) -> np.ndarray:
    """The last frames of (frames, heads, size) before ``until`` where a ring keeps them, NaN elsewhere."""
    pitch = frame_elements(keys.shape[1:])
    memory = aligned(slots * pitch, "float32").reshape(slots, pitch)
    for n in range(max(0, until - slots), until):
        memory[n % slots, : keys[n].size] = keys[n].reshape(-1)
    return memory


def attend(n: int, length: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, slots: int, **attrs: Any) -> np.ndarray:
    """Frame n of the kernel's output, (heads, size)."""
    back = attrs["left"] + attrs["low"] - 1
    values = value("q", q.shape[1:]), value("k", k.shape[1:]), value("v", v.shape[1:])
    out = value("y", (q.shape[1], v.shape[2]))
    node = FrameNode("attend", values, out, {"softcap": 0.0, "bias": None, "scale": 0.5, "back": back, "length": LENGTH,
                                             "size": q.shape[2], **attrs})  # fmt: skip
    access = {x: Access(1, False, frame_elements(x.shape), x is not values[0]) for x in values}
    module = KernelModule(Target.host())
    kernel = module.add(Group((node,), access, (), frame_elements(out.shape)))
    entry = load_image_for_tests(module.build())[kernel.variants[1]]
    until = min(len(k), n - n % attrs["high"] + attrs["right"] + 1)
    held = {values[1]: rings(k, slots, until), values[2]: rings(v, slots, until)}
    words, place = np.array([n, length], np.int64), np.array([(n - back) % slots, slots], np.int32)
    query, result = aligned(frame_elements(q.shape[1:]), "float32"), aligned(frame_elements(out.shape), "float32")
    query[: q[n].size] = q[n].reshape(-1)
    addresses, keep = [], []
    for arg in kernel.args:
        if arg.role == "number":
            addresses.append(words.ctypes.data)
        elif arg.role == "const":
            assert arg.data is not None
            keep.append(arg.data)
            addresses.append(arg.data.ctypes.data)
        elif arg.role == "out":
            addresses.append(result.ctypes.data)
        elif arg.value is values[0]:
            addresses.append(query.ctypes.data)
        else:
            addresses += [held[arg.value].ctypes.data, place.ctypes.data]  # type: ignore[index]
    assert entry(*addresses) == 0
    return result[: q.shape[1] * v.shape[2]].reshape(q.shape[1], v.shape[2])


def expected(n: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, band: dict[str, int]) -> np.ndarray:
    first = max(0, n - n % band["low"] - band["left"])
    last = min(len(k) - 1, n - n % band["high"] + band["right"])
    scores = np.einsum("hd,jhd->hj", q[n].astype(np.float64), k[first : last + 1]) * 0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hj,jhd->hd", weights / weights.sum(-1, keepdims=True), v[first : last + 1])


@pytest.mark.parametrize("size", [3, 16, 37])
@pytest.mark.parametrize("band", [(0, 0, 1, 1), (5, 2, 1, 1), (40, 0, 1, 1), (8, 3, 4, 4), (33, 6, 1, 7)])
def test_attend(band: tuple[int, int, int, int], size: int) -> None:
    named = dict(zip(("left", "right", "low", "high"), band, strict=True))
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((70, 2, n)).astype(np.float32) for n in (size, size, size + 1))
    slots = named["left"] + named["low"] + named["right"] + 2 * named["high"]
    for n in (0, 1, 15, 16, 34, 69):
        got = attend(n, 70, q, k, v, slots, **named)
        np.testing.assert_allclose(got, expected(n, q, k, v, named), rtol=0, atol=2e-6)
