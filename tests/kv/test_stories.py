"""The zoo's stories260k through bounded caches: text, constant bytes, and logits equal to a float64 decoder's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from float64 import Float64

import runnel
from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.runtime import build_core, native

HERE = Path(__file__).resolve().parent
MODEL = Path(os.environ.get("RUNNEL_ZOO", "/nowhere")) / "stories260k" / "stories260k_full.onnx"
pytestmark = [
    pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core"),
    pytest.mark.skipif(not MODEL.exists(), reason="needs the model zoo (RUNNEL_ZOO)"),
]
FIRST = 1  # the token that begins a text
TOKENS = int(os.environ.get("RUNNEL_TOKENS", "20000"))
PARTS = 10
POLICIES = ["sink=4,window=12"]
if TOKENS >= 1_000_000:  # make nightly
    POLICIES += [
        "sink=4,window=12,positions=contiguous", "heavy=8,window=8", "scissorhands=8,window=8", "snap=8,window=10",
        "merge=8,window=8", "heavy=8,window=8,positions=contiguous", "sink=4,window=12,keys=int8,values=int8",
    ]  # fmt: skip


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
@pytest.mark.parametrize("kv", POLICIES)
def test_logits_are_those_of_a_float64_decoder(bundle: Any, kv: str, start: int) -> None:
    program = bundle(kv)
    stream = program.stream(position=start)
    reference = Float64(analyse(load(MODEL), kv=kv), start)
    rng, value, worst = np.random.default_rng(start % 97), FIRST, 0.0
    for _ in range(40):
        got = stream.push(token(value))[0, 0]
        wanted = reference.step({"tokens": token(value)})["logits"].reshape(-1)
        worst = max(worst, float(np.abs(got - wanted).max() / np.ptp(wanted)))
        value = int(rng.integers(3, 512)) if rng.random() < 0.3 else int(wanted.argmax())
    assert worst < 1e-4


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see resident memory")
def test_many_tokens_take_the_same_bytes_and_work(bundle: Any) -> None:
    """Bytes to the byte, kernel calls and multiply-adds of each part to the last one, memory flat."""
    stream = bundle("sink=4,window=12").stream()
    value, work, sizes, memory = FIRST, [], set(), []
    for _ in range(PARTS):
        before = stream.counters
        for _ in range(TOKENS // PARTS):
            value = int(stream.push(token(value))[0, 0].argmax())
        after = stream.counters
        work.append({name: after[name] - before[name] for name in before})
        sizes.add((stream.kv.bytes, stream.state_bytes, stream.kv.kept))
        memory.append(resident())
    assert stream.position == TOKENS and len(sizes) == 1
    assert all(w == work[2] for w in work[2:])
    assert memory[-1] - memory[2] < 1 << 20


@pytest.mark.skipif(TOKENS < 1_000_000, reason="times: part of make nightly")
def test_an_old_stream_is_as_fast_as_a_young_one(bundle: Any) -> None:
    """In turns, token by token, the same tokens again and again: the least time of each token is what the machine's
    other work left alone."""
    program = bundle("sink=4,window=12")
    old, young = program.stream(), program.stream()
    old.push(np.resize(np.arange(3, 500), (1, TOKENS)))
    young.push(np.resize(np.arange(3, 500), (1, 1000)))
    streams = {"old": old, "young": young}
    least = {name: np.full(5000, np.inf) for name in streams}
    for turn in range(9):
        copies = {name: stream.clone() for name, stream in streams.items()}
        for n in range(5000):
            for name in ("old", "young") if (n + turn) % 2 else ("young", "old"):
                begin = time.perf_counter()
                copies[name].push(token(3 + n % 500))
                least[name][n] = min(least[name][n], time.perf_counter() - begin)
    median, late = (float(np.quantile(least["old"], q) / np.quantile(least["young"], q)) for q in (0.5, 0.99))
    print(f"\nold over young after {TOKENS} tokens: median {median:.3f}, p99 {late:.3f}")
    assert median <= 1.03 and late <= 1.25


@pytest.mark.skipif(TOKENS < 1_000_000, reason="builds a program and runs it in valgrind: part of make nightly")
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind: apt-get install valgrind")
def test_a_token_of_an_old_stream_takes_as_many_instructions(tmp_path: Path) -> None:
    """Of 64 tokens, counted by valgrind on code for x86-64-v3."""
    driver, bundle, state = tmp_path / "tokens", tmp_path / "m.rnl", tmp_path / "state"
    flags = ["-std=c++17", "-O2", "-pthread", f"-I{build_core.CORE / 'include'}", f"-I{HERE.parent / 'runtime'}"]
    sources = [HERE / "tokens.cc", *build_core.sources()]
    subprocess.run([*build_core.find_compiler(), *flags, *map(str, sources), "-o", str(driver)], check=True)
    runnel.compile(MODEL, bundle, kv="sink=4,window=12", hop=8, target="x86-64-v3")
    stream, counts = runnel.load(bundle).stream(), []
    for tokens in (1000, TOKENS - 1000):
        stream.push(np.resize(np.arange(3, 500), (1, tokens)))
        state.write_bytes(stream.save())
        command = ["valgrind", "--tool=callgrind", "--toggle-collect=rn_push", "--callgrind-out-file=/dev/null"]
        done = subprocess.run([*command, driver, bundle, state, "64", "1"], capture_output=True, text=True, check=True)
        found = re.search(r"Collected : (\d+)", done.stderr)
        assert found, done.stderr[-2000:]
        counts.append(int(found[1]))
    print(f"\ninstructions of 64 tokens after 1000 tokens and after {TOKENS}: {counts}")
    assert counts[0] == counts[1]


def test_a_prompt_in_chunks_is_a_prompt_token_by_token(bundle: Any) -> None:
    program, tokens = bundle("sink=4,window=12"), np.random.default_rng(5).integers(3, 512, (1, 50))
    whole = np.concatenate([program.stream().push(tokens)], axis=1)
    stream = program.stream()
    single = np.concatenate([stream.push(tokens[:, n : n + 1]) for n in range(50)], axis=1)
    assert np.array_equal(whole, single)
    assert np.array_equal(program.stream().push(tokens, last=True), whole[:, -1:])


def test_both_forms_are_one_decoder(bundle: Any, tmp_path: Path) -> None:
    """The model with a past, positions and a mask of its own, and that of the whole sequence."""
    path = runnel.compile(MODEL.with_name("stories260k_kv.onnx"), tmp_path / "kv.rnl", kv="sink=4,window=12").path
    tokens = np.random.default_rng(6).integers(3, 512, (1, 60))
    wanted = bundle("sink=4,window=12").stream().push(tokens)
    assert np.abs(runnel.load(path).stream().push(tokens) - wanted).max() <= 1e-4 * np.ptp(wanted)
