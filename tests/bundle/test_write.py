"""The .rnl writer: what is in the file, that it is the same every time, and that nothing half-written stays."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.compiler.bundle import ALIGNMENT, MANIFEST_KEYS, SEGMENT_BYTES, crc32c, write_bundle
from runnel.errors import InputError, InternalError

WEIGHTS = np.random.default_rng(0).integers(0, 256, SEGMENT_BYTES * 2 + 12345, dtype=np.uint8).tobytes()
ENTRIES = {"plan": b"p" * 4096, "kernels/host": b"k" * 70001, "weights/f32": WEIGHTS, "LICENSE": b"text", "empty": b""}


def manifest(**changes: object) -> dict[str, object]:
    keys = MANIFEST_KEYS - {"schema", "program_hash", "entries"}
    return {**dict.fromkeys(keys), "name": "m", "weights": {"layout": "f32"}, **changes}


def bitwise_crc32c(data: bytes) -> int:
    register = 0xFFFFFFFF
    for octet in data:
        register ^= octet
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720 B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_known_vectors(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(0, 4000), cut=st.integers(0, 4000))
def test_crc32c_equals_the_bitwise_definition_and_continues(seed: int, size: int, cut: int) -> None:
    data = np.random.default_rng(seed).bytes(size)
    assert crc32c(data) == bitwise_crc32c(data)
    assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


@pytest.mark.parametrize("size", [4096, 32767, 32768, 70001])
def test_crc32c_of_blocks_that_are_summed_side_by_side(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    expected = bitwise_crc32c(data)
    assert crc32c(data) == expected
    assert crc32c(data[3000:], crc32c(data[:3000])) == expected


def test_every_payload_is_aligned_stored_and_described(tmp_path: Path) -> None:
    path = tmp_path / "m.rnl"
    complete = write_bundle(path, manifest(), ENTRIES)
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        infos = {info.filename: info for info in archive.infolist()}
        assert json.loads(archive.read("manifest.json")) == complete
        digest = hashlib.sha256(archive.read("manifest.json")).hexdigest()
        assert archive.read("manifest.sha256").decode() == f"{digest}\n"
        for name, payload in ENTRIES.items():
            info = infos[name]
            start = info.header_offset + 30 + len(name) + int.from_bytes(raw[info.header_offset + 28 :][:2], "little")
            assert start % ALIGNMENT == 0
            assert raw[start : start + len(payload)] == payload
            assert info.compress_type == zipfile.ZIP_STORED
            assert complete["entries"][name] == {"sha256": hashlib.sha256(payload).hexdigest(), "bytes": len(payload)}
        assert set(infos) - set(ENTRIES) - {"manifest.json", "manifest.sha256"} == {
            n for n in infos if n.startswith(".pad/")
        }


def test_segments_cover_the_weights_with_their_checksums(tmp_path: Path) -> None:
    segments = write_bundle(tmp_path / "m.rnl", manifest(), ENTRIES)["weights"]["segments"]
    assert [s["bytes"] for s in segments] == [SEGMENT_BYTES, SEGMENT_BYTES, 12345]
    assert [s["crc32c"] for s in segments] == [crc32c(WEIGHTS[s["offset"] :][: s["bytes"]]) for s in segments]


def test_segments_may_be_given_in_order_of_use(tmp_path: Path) -> None:
    given_segments = [{"offset": 0, "bytes": 7}, {"offset": 7, "bytes": 3}]
    weights = {"layout": "f32", "segments": given_segments}
    complete = write_bundle(tmp_path / "m.rnl", manifest(weights=weights), {"weights/f32": b"0123456789"})
    assert [(s["offset"], s["bytes"]) for s in complete["weights"]["segments"]] == [(0, 7), (7, 3)]
    with pytest.raises(InternalError, match="cover 10 of 11"):
        write_bundle(tmp_path / "n.rnl", manifest(weights=weights), {"weights/f32": b"0123456789x"})


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    a, b = tmp_path / "a.rnl", tmp_path / "b.rnl"
    write_bundle(a, manifest(), ENTRIES)
    write_bundle(b, dict(reversed(manifest().items())), ENTRIES)
    assert a.read_bytes() == b.read_bytes()


def test_program_hash_follows_what_is_executed(tmp_path: Path) -> None:
    def hash_of(**changes: bytes) -> str:
        return str(write_bundle(tmp_path / "m.rnl", manifest(), {**ENTRIES, **changes})["program_hash"])

    assert hash_of() == hash_of(LICENSE=b"another")
    assert (
        len({hash_of(), hash_of(plan=b"q"), hash_of(**{"weights/f32": b"w"}), hash_of(**{"kernels/host": b"x"})}) == 4
    )


def test_program_hash_follows_the_portable_form_where_there_is_no_plan(tmp_path: Path) -> None:
    def hash_of(**entries: bytes) -> str:
        return str(write_bundle(tmp_path / "m.rnl", manifest(weights={}), entries)["program_hash"])

    form, start = {"streaming.onnx": b"a"}, {"states/0.npy": b"s"}
    assert hash_of(**form) == hash_of(**form, LICENSE=b"x")
    assert len({hash_of(**form), hash_of(**{"streaming.onnx": b"b"}), hash_of(**form, **start), hash_of()}) == 4
    assert hash_of(**form, plan=b"p") == hash_of(plan=b"p")


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../b", "", "a//b", "a\\b", "manifest.json", "manifest.sha256", ".pad/0"]
)
def test_names_that_a_loader_refuses_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InternalError):
        write_bundle(tmp_path / "m.rnl", manifest(), {**ENTRIES, name: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_unknown_and_missing_keys_are_named(tmp_path: Path) -> None:
    short = manifest(surprise=1)
    del short["hop"]
    with pytest.raises(InternalError, match="'hop'.*'surprise'"):
        write_bundle(tmp_path / "m.rnl", short, ENTRIES)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_half_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    path = tmp_path / "m.rnl"
    path.write_bytes(b"the old one")

    def fail(*_: object) -> None:
        raise interruption

    monkeypatch.setattr("runnel.files.os.fsync", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(interruption, KeyboardInterrupt) else InputError):
        write_bundle(path, manifest(), ENTRIES)
    assert [p.name for p in tmp_path.iterdir()] == ["m.rnl"]
    assert path.read_bytes() == b"the old one"


def test_a_folder_that_is_not_there_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_bundle(tmp_path / "no" / "m.rnl", manifest(), ENTRIES)
    with pytest.raises(InputError, match="not a file"):
        write_bundle(tmp_path, manifest(), ENTRIES)
