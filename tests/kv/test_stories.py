"""The zoo's stories260k through bounded caches: text, constant bytes, and logits equal to a float64 decoder's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from float64 import Float64

import runnel
from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.runtime import native

MODEL = Path(os.environ.get("RUNNEL_ZOO", "/nowhere")) / "stories260k" / "stories260k_full.onnx"
pytestmark = [
    pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core"),
    pytest.mark.skipif(not MODEL.exists(), reason="needs the model zoo (RUNNEL_ZOO)"),
]
FIRST = 1  # the token that begins a text


def token(value: int) -> np.ndarray:
    return np.array([[value]], np.int64)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Any] = {}

    def get(kv: str) -> Any:
        if kv not in made:
            out = tmp_path_factory.mktemp("kv") / "stories.rnl"
            runnel.compile(MODEL, out, kv=kv, hop=8)
            made[kv] = runnel.load(out)
        return made[kv]

    return get


@pytest.mark.parametrize("start", [0, 2**24 - 8, 2**31 - 8])
@pytest.mark.parametrize("positions", ["", ",positions=contiguous"])
def test_logits_are_those_of_a_float64_decoder(bundle: Any, positions: str, start: int) -> None:
    program = bundle(f"sink=4,window=12{positions}")
    stream = program.stream(position=start)
    reference = Float64(analyse(load(MODEL), kv=f"sink=4,window=12{positions}"), start)
    rng, value, worst = np.random.default_rng(start % 97), FIRST, 0.0
    for _ in range(40):
        got = stream.push(token(value))[0, 0]
        wanted = reference.step({"tokens": token(value)})["logits"].reshape(-1)
        worst = max(worst, float(np.abs(got - wanted).max() / np.ptp(wanted)))
        value = int(rng.integers(3, 512)) if rng.random() < 0.3 else int(wanted.argmax())
    assert worst < 1e-4


def test_ten_thousand_tokens_take_the_same_bytes_and_work(bundle: Any) -> None:
    """The last thousand as the third: bytes to the byte, kernel calls and multiply-adds to the last one."""
    stream = bundle("sink=4,window=12").stream()
    value, work, sizes = FIRST, [], set()
    for _ in range(10):
        before = stream.counters
        for _ in range(1000):
            value = int(stream.push(token(value))[0, 0].argmax())
        work.append([stream.counters[name] - before[name] for name in before])
        sizes.add((stream.kv.bytes, stream.state_bytes, stream.kv.kept))
    assert len(sizes) == 1
    assert all(w == work[2] for w in work[2:])


def test_a_prompt_in_chunks_is_a_prompt_token_by_token(bundle: Any) -> None:
    program, tokens = bundle("sink=4,window=12"), np.random.default_rng(5).integers(3, 512, (1, 50))
    whole = np.concatenate([program.stream().push(tokens)], axis=1)
    stream = program.stream()
    single = np.concatenate([stream.push(tokens[:, n : n + 1]) for n in range(50)], axis=1)
    assert np.array_equal(whole, single)
    assert np.array_equal(program.stream().push(tokens, last=True), whole[:, -1:])
