"""Compiling decoders: what a bundle says of its caches, what is proved of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from decoders import VOCABULARY
from others import ranking_heads

import runnel
from models import FAMILIES
from runnel.errors import InputError, Refused, StreamError
from runnel.runtime import native

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")
TOKENS = np.random.default_rng(3).integers(0, VOCABULARY, (1, 23))


def compiled(tmp_path: Path, name: str, **options: Any) -> tuple[Any, Any]:
    """The program of a family and its bundle's manifest."""
    info = runnel.compile(FAMILIES[name]().model, tmp_path / "m.rnl", **options)
    return runnel.load(info.path), info.manifest


@pytest.mark.parametrize(
    "name", ["group_query_sinks", "latent", "bias_by_buckets", "beside_an_encoder", "hybrid", "mixtures_of_experts"]
)
def test_kernels_equal_onnxruntime_with_a_past(tmp_path: Path, name: str) -> None:
    decoder = FAMILIES[name]()
    program, manifest = compiled(tmp_path, name, kv="sink=2,window=22")
    wanted = decoder.logits(TOKENS, [9, *[1] * 14])
    stream = program.stream(inputs=decoder.statics or None)
    got = np.concatenate(
        [stream.push(TOKENS[:, :9]), stream.push(TOKENS[:, 9:10]), stream.push(TOKENS[:, 10:])], axis=1
    )
    assert oracle.deviation(got, wanted) <= oracle.TOLERANCE
    assert manifest["backends"] == ["native"] and manifest["proof"]["against"] == "the offline model"
    assert manifest["proof"]["frames"] == [24, 3, 48] and "what tokens are dropped" in manifest["proof"]["not_covered"]


def test_a_bundle_says_what_its_caches_are(tmp_path: Path) -> None:
    program, manifest = compiled(tmp_path, "learned_sinks", kv="full", max_frames=40)
    assert manifest["backends"] == ["native", "onnxruntime"] and program.manifest["clock"]["max_frames"] == 40
    first, second = manifest["kv"]["layers"]
    assert (first["window"], second["window"]) == (6, 0) and first["sinks"] and first["kv_heads"] == 2
    assert first["rotary"] == {"dims": 8, "pairs": "halves", "from": "a constant"}


def test_codes_have_their_deviation_measured(tmp_path: Path) -> None:
    _, manifest = compiled(tmp_path, "grouped_heads", kv="window=24,keys=int8,values=int8")
    assert 1e-5 < manifest["kv"]["deviation"]["logits"]["max"] < 0.05
    assert manifest["proof"]["against"] == "its own stream" and manifest["proof"]["error"]["native"] == 0


def test_a_table_of_positions_counts_from_the_first_token(tmp_path: Path) -> None:
    program, manifest = compiled(tmp_path, "learned_positions", kv="window=20")
    assert manifest["clock"]["max_frames"] == 64
    with pytest.raises(StreamError, match="cannot start at position 5"):
        program.stream(position=5)


@pytest.mark.parametrize("kv", ["sink=4", "window=0", "window=x", "budget", "full,window=3", "window=4,keys=int7"])
def test_a_bad_policy_is_one_sentence(tmp_path: Path, kv: str) -> None:
    with pytest.raises(InputError, match="kv='"):
        compiled(tmp_path, "grouped_heads", kv=kv)


def test_everything_needs_a_bound(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="--max-frames"):
        compiled(tmp_path, "grouped_heads")


def test_a_policy_needs_kernels(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="needs kernels"):
        compiled(tmp_path, "grouped_heads", kv="window=20", backend="onnxruntime")


def test_outputs_of_the_model_rank_tokens(tmp_path: Path) -> None:
    """As long as nothing is dropped the logits are the offline model's; then those stay that are ranked highest."""
    decoder = ranking_heads()
    info = runnel.compile(decoder.model, tmp_path / "m.rnl", kv="retain=worth,budget=6,window=4")
    program = runnel.load(info.path)
    assert [p.name for p in program.outputs] == ["logits"]
    stream = program.stream()
    wanted = decoder.logits(TOKENS, [5, *[1] * 18])
    got = stream.push(TOKENS)
    assert oracle.deviation(got[:, :10], wanted[:, :10]) <= oracle.TOLERANCE
    assert oracle.deviation(got[:, 12:], wanted[:, 12:]) > 1e-3
    assert stream.kv.kept == 10


def test_a_ranking_that_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no output 'worth.0'.*'logits'"):
        compiled(tmp_path, "grouped_heads", kv="retain=worth,budget=6,window=4")


def test_a_ranking_that_waits_for_what_it_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="'worth', which waits for its own result"):
        runnel.compile(ranking_heads(one_output=True).model, tmp_path / "m.rnl", kv="retain=worth,budget=6,window=4")


def test_rounded_weights_behind_a_policy(tmp_path: Path) -> None:
    """Proved against the portable form with the same weights, as long as nothing is dropped."""
    _, manifest = compiled(tmp_path, "coded_blocks", kv="sink=2,window=22", weights="fp16")
    assert manifest["proof"]["against"] == "the portable form" and manifest["backends"] == ["native"]
    assert 0 < manifest["modes"]["deviation"]["logits"]["max"] < 0.01
