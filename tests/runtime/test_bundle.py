"""Broken, altered, foreign and newer bundles are refused in one sentence that names the entry."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from bundles import central, pack, patched, repack, signed, write
from loading import BAD_BUNDLE, OK, load_in_core
from plans import SKIP, conv, conv_plan, needs_core, play

from runnel.errors import BundleError, InputError
from runnel.runtime.bundle import Bundle
from runnel.runtime.program import load

pytestmark = pytest.mark.skipif(needs_core, reason=SKIP)


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "m.rnl")


def refused(path, *said):
    with pytest.raises(BundleError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert str(path) in message or "plan of" in message
    for word in said:
        assert word in message, message
    code, sentence = load_in_core(path)
    assert code == BAD_BUNDLE
    if "could leave its folder" not in message and "native backend" not in message:  # those name more, or another way
        assert sentence == message


def test_a_bundle_runs(path):
    program = load(path, poison=True)
    x = np.random.default_rng(1).standard_normal((1, 30, 4)).astype(np.float32)
    got = play(program, x, [3, 1, 9])
    np.testing.assert_allclose(got[0], conv(x[0], conv_plan()[1], 1, 1, (1, 1)), atol=2e-5)
    bundle = Bundle(path)
    bundle.verify()
    assert bundle.read("LICENSE") == b"none"
    assert bundle.names == ["plan", "kernels/host", "weights/packed", "LICENSE"]


def test_a_stream_outlives_the_name_of_its_program(path):
    stream = load(path).stream()
    x = np.ones((1, 9, 4), np.float32)
    stream.push(x)
    path.unlink()
    assert stream.push(x).shape == (1, 9, 4)


def test_every_truncation_is_refused(path):
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        edges = {i.header_offset for i in archive.infolist()} | {i.header_offset + 30 for i in archive.infolist()}
    start = struct.unpack_from("<L", data, len(data) - 6)[0]
    edges |= {0, 1, 21, 22, 23, start, start + 1, len(data) // 2} | set(range(len(data) - 60, len(data)))
    for size in sorted(edges):
        path.write_bytes(data[:size])
        refused(path)


def test_flipped_bytes_are_refused_or_harmless(path):
    data = path.read_bytes()
    start = struct.unpack_from("<L", data, len(data) - 6)[0]
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    spots = set(range(start, len(data)))
    for info in infos:
        payload = info.header_offset + 30 + len(info.filename)
        spots |= set(range(info.header_offset, payload))
        if not info.filename.startswith(".pad/"):
            spots |= {payload, payload + info.file_size // 2, payload + info.file_size - 1}
    refusals = 0
    for spot in sorted(spots):
        changed = bytearray(data)
        changed[spot] ^= 1 << spot % 8
        path.write_bytes(changed)
        code, _ = load_in_core(path)
        try:
            Bundle(path).verify()  # dates, versions and permissions mean nothing here
            assert code == OK
        except BundleError as error:
            refusals += 1
            assert "\n" not in str(error)
            assert code == BAD_BUNDLE
    assert refusals > len(spots) // 3


@pytest.mark.parametrize("name", ["plan", "kernels/host", "weights/packed"])
def test_an_altered_payload_is_named(path, name):
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(name) + info.file_size - 1] ^= 1
    path.write_bytes(data)
    refused(path, name, "again")


def test_the_manifest_is_protected_too(path):
    with zipfile.ZipFile(path) as archive:
        entries = {i.filename: archive.read(i) for i in archive.infolist() if not i.filename.startswith(".pad/")}
    text, total = entries["manifest.json"], entries.pop("manifest.sha256")
    path.write_bytes(pack(entries))
    refused(path, "manifest.json", "manifest.sha256")
    for altered in (
        {"manifest.json": text.replace(b'"hop": ', b'"hop": 1'), "manifest.sha256": total},
        {"manifest.json": text, "manifest.sha256": total.upper()},
        {"manifest.json": text, "manifest.sha256": total[:-1]},
        {"manifest.json": text, "manifest.sha256": b""},
    ):
        path.write_bytes(pack(entries | altered))
        refused(path, "'manifest.json' was altered")


def test_what_is_read_later_is_checked_then(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b"none", b"some", 1))
    bundle = Bundle(path)
    with pytest.raises(BundleError, match="LICENSE"):
        bundle.read("LICENSE")


def test_directory_tricks(path):
    data = path.read_bytes()
    plan, weights = central(data, "plan"), central(data, "weights/packed")
    header = struct.unpack_from("<L", data, plan + 42)[0]
    for changed, said in [
        (patched(data, plan + 10, "<H", 8), "compressed"),
        (patched(data, plan + 8, "<H", 1), "encrypted"),
        (patched(data, plan + 38, "<L", 0o120777 << 16), "link"),
        (patched(data, plan + 38, "<L", 0o040755 << 16), "link"),
        (patched(data, weights + 42, "<L", header), "header"),
        (patched(data, plan + 20, "<LL", 1 << 20, 1 << 20), "outside"),
        (patched(data, plan + 20, "<LL", 70_000, 70_000), "overlap"),
        (patched(data, plan + 42, "<L", 0xFFFFFFF0), "outside"),
        (patched(data, len(data) - 14, "<HH", 5000, 5000), "claims"),
        (patched(data, len(data) - 18, "<H", 1), "parts"),
        (data + b"x", "end is missing"),
    ]:
        path.write_bytes(changed)
        refused(path, said)


@pytest.mark.parametrize("name", ["/etc/passwd", "../plan", "a/../../b", "a//b", "c:\\x", "a\\b", "./x", "a\nb"])
def test_names_that_leave_the_folder(path, name):
    repack(path, lambda m, e: e.update({name: b"x"}))
    refused(path, "name")


def test_duplicate_names(path, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("plan", b"x")
    refused(path, "'plan' is there twice")


def test_not_a_bundle(tmp_path):
    file = tmp_path / "m.rnl"
    refused(file, "cannot be opened")
    file.write_bytes(b"")
    refused(file, "empty")
    file.write_bytes(b"hello, this is a text and not a bundle")
    refused(file, "end is missing")
    file.write_bytes(pack({"readme": b"x"}))
    refused(file, "manifest.json")
    file.write_bytes(pack(signed(b"[1")))
    refused(file, "JSON")
    file.write_bytes(pack(signed(b"[" * 100_000)))
    refused(file, "JSON")
    with pytest.raises(BundleError):
        load(tmp_path)


def change(key, value):
    return lambda m, e: m.update({key: value})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (change("schema", 2), "update runnel"),
        (change("schema", "1"), "'schema'"),
        (change("colour", 1), "'colour' is unknown"),
        (lambda m, e: m.pop("hop"), "'hop' is missing"),
        (change("hop", 0), "'hop'"),
        (change("hop", True), "'hop'"),
        (change("hop", 1e9), "'hop'"),
        (change("program_hash", "xyz"), "'program_hash'"),
        (change("inputs", []), "'inputs'"),
        (change("clock", {"rate": -1}), "'clock'"),
        (lambda m, e: m["inputs"][0].update(axis=0), "'inputs'"),
        (lambda m, e: m["inputs"][0].update(per_tick=-1), "'inputs'"),
        (lambda m, e: m["inputs"][0].update(per_tick=0), "'inputs'"),
        (lambda m, e: m["inputs"][0].update(per_tick=3), "another rate than in the manifest"),
        (lambda m, e: m["inputs"][0].update(rate=0), "'inputs'"),
        (lambda m, e: m["clock"].update(ahead=0), "'clock'"),
        (lambda m, e: m["inputs"][0].update(shape=[1, None, 1 << 40]), "'inputs'"),
        (lambda m, e: m["outputs"][0].update(dtype="object"), "'outputs'"),
        (lambda m, e: m["outputs"][0].update(shape=[1, None, 5]), "y0"),
        (lambda m, e: m["weights"]["segments"][0].update(offset=8), "'weights'"),
        (lambda m, e: m["weights"]["segments"][0].update(crc32c=1), "weights/packed"),
        (lambda m, e: m["weights"].update(layout="other"), "'weights'"),
        (lambda m, e: e.pop("plan"), "'plan' is missing"),
        (lambda m, e: e.update(new=b"x"), "'new' is not in the manifest"),
        (lambda m, e: m["target"].update(arch="riscv64"), "riscv64"),
        (lambda m, e: m["target"].update(features=["avx9000"]), "avx9000"),
        (lambda m, e: m["target"].update(name="rpi5"), "kernels/rpi5"),
        (change("backends", ["onnxruntime"]), "no form for the native backend"),
        (lambda m, e: e.update(plan=e["plan"][:-8]), "words"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_by_the_key(path, edit, said):
    repack(path, edit)
    refused(path, said)


def test_an_unaligned_image_is_refused(path):
    with zipfile.ZipFile(path) as archive:
        entries = {i.filename: archive.read(i) for i in archive.infolist() if not i.filename.startswith(".pad/")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    refused(path, "not aligned")


def test_an_unknown_backend_is_refused(path):
    with pytest.raises(InputError, match="native, onnxruntime"):
        load(path, backend="gpu")


def test_running_a_bundle_imports_no_compiler(path):
    script = (
        "import sys, numpy as np, runnel.runtime, runnel\n"
        f"s = runnel.load({str(path)!r}).stream()\n"
        "s.push(np.ones((1, 3, 4), np.float32)); s.flush()\n"
        "bad = [m for m in ('tvm', 'onnx', 'onnxruntime', 'runnel.compiler') if m in sys.modules]\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
