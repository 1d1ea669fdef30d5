"""gtcrn, which brings its own states, as it is and behind its STFT: mix.wav becomes the author's enh.wav."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runnel.errors import InputError
from runnel.models.stft.export import analysis, synthesis
from runnel.runtime.chain import Chain, results
from runnel.runtime.io import read_wav
from runnel.runtime.program import Program
from runnel.tools.cli import main

STATES = {f"{name}_cache_out": f"{name}_cache" for name in ("conv", "tra", "inter")}
ALLOWED = {"onnxruntime": 1e-6, "native": 1e-5}  # of the output's range
ENHANCED = 1e-3
Load = Callable[..., Program]


@pytest.fixture(scope="module")
def bundles(zoo: Path, compiled: Callable[..., Path]) -> list[Path]:
    """STFT, gtcrn, inverse STFT."""
    return [
        compiled("stft", analysis(), rate=16000),
        compiled("gtcrn", zoo / "gtcrn" / "gtcrn_simple.onnx", rate=62.5),
        compiled("istft", synthesis(), rate=62.5),
    ]


def cuts(total: int, seed: int, most: int) -> list[tuple[int, int]]:
    """A recording cut at random."""
    sizes = np.random.default_rng(seed).integers(0, most, total)
    edges = [0, *np.minimum(np.cumsum(sizes), total).tolist()]
    return [(a, b) for a, b in zip(edges, edges[1:]) if a < total]


def test_frames_are_what_onnxruntime_gives_step_by_step(
    zoo: Path, bundles: list[Path], load: Load, stepped: Callable[..., Any], backend: str
) -> None:
    program = load(bundles[1])
    assert [p.name for p in results(program)] == ["enh"]
    mix = (0.3 * np.random.default_rng(0).standard_normal((61, 1, 257, 1, 2))).astype(np.float32)
    expected = stepped(zoo / "gtcrn" / "gtcrn_simple.onnx", {"mix": mix}, STATES)["enh"]
    before: bytes | None = None
    for pieces in ([(0, 61)], [(n, n + 1) for n in range(61)], cuts(61, 3, 9)):
        stream = Chain([program]).stream()
        got = np.concatenate([stream.push(mix[a:b]) for a, b in pieces] + [stream.flush()])
        assert np.abs(got - expected).max() <= ALLOWED[backend] * np.abs(expected).max()
        assert before is None or got.tobytes() == before
        before = got.tobytes()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_noisy_recording_becomes_the_authors(zoo: Path, bundles: list[Path], load: Load, seed: int) -> None:
    chain = Chain([load(path, fall_back=True) for path in bundles])
    assert (chain.ratio, chain.latency_frames, chain.rate) == (1, 511, 16000)
    mix, expected = (read_wav(zoo / "gtcrn" / f"{name}.wav").samples for name in ("mix", "enh"))
    stream = chain.stream()
    pieces = [stream.push(mix[:, a:b]) for a, b in cuts(mix.shape[1], seed, 4000)]
    got = np.concatenate([*pieces, stream.flush()], axis=1)
    assert got.shape == expected.shape
    error = np.abs(got - expected).max()
    print(f"enh.wav on {chain.backend}: largest error {error:.2e}")
    assert error <= ENHANCED
    late = chain.latency_frames + 3 * chain.hop  # onnxruntime gives whole hops, one more at each program
    assert sum(piece.shape[1] for piece in pieces) >= mix.shape[1] - late


def test_the_command_line_makes_the_same_wav(
    zoo: Path, bundles: list[Path], load: Load, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in bundles:
        load(path)
    out = tmp_path / "enh.wav"
    argv = ["run", *map(str, bundles), "--in", str(zoo / "gtcrn" / "mix.wav"), "--out", str(out), "--json"]
    assert main([*argv, "--backend", backend]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["latency_frames"] == 511 and page["timing"]["frames"] == 156302
    written, expected = read_wav(out), read_wav(zoo / "gtcrn" / "enh.wav")
    assert written.rate == 16000
    assert written.samples.shape == expected.samples.shape
    assert np.abs(written.samples - expected.samples).max() <= ENHANCED


def test_parts_in_the_wrong_order_are_refused_with_both_ports(
    bundles: list[Path], zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["run", str(bundles[1]), str(bundles[0]), "--in", str(zoo / "gtcrn" / "mix.wav")]
    assert main([*argv, "--backend", "onnxruntime"]) == InputError.exit_code
    said = capsys.readouterr().err
    assert "'enh'" in said and "'wav'" in said and said.count("\n") == 1
