"""Signatures: the board's own check against RFC 8032 and a library, and boards that run nothing unsigned."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from direct import DirectBoard, current, parcel, pushed

from runnel.errors import InputError
from runnel.runtime import build_core
from runnel.runtime.bundle import Bundle
from runnel.tools.cli import main
from runnel.tools.deploy import sign

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
HERE = Path(__file__).resolve().parent
ORDER = 2**252 + 27742317777372353535851937790883648493
PRIME = 2**255 - 19
# RFC 8032, section 7.1: public key, message, signature.
RFC8032 = [
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2465"
     "5141438e7a100b"),
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb0"
     "0d291612bb0c00"),
    ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc0"
     "27beceea1ec40a"),
]  # fmt: skip


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    """verifier(lines) → what the board's code says of each."""
    out = tmp_path_factory.mktemp("verifier") / "verify"
    files = [HERE / "verify_signatures.cc", *sorted((HERE.parents[1] / "runtime" / "sign").glob("[es]*.cc"))]
    flags = ["-std=c++17", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    line = [*build_core.find_compiler(), *flags, *map(str, files), "-o", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the compiler lacks what this test needs: {done.stderr[-300:]}")

    def run(lines):
        text = "".join(f"{key} {signature} x{message}\n" for key, signature, message in lines)
        return subprocess.run([out], input=text, capture_output=True, text=True, check=True).stdout.split()

    return run


def test_the_vectors_of_the_rfc(verifier):
    assert verifier([(key, signature, message) for key, message, signature in RFC8032]) == ["1"] * 3
    assert verifier([(key, signature, message + "00") for key, message, signature in RFC8032]) == ["0"] * 3


def test_random_messages_against_a_library(verifier):
    rng, lines, expected = random.Random(1), [], []
    for size in [*range(0, 260, 9), 1000, 50000]:
        key = ed25519.Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
        message = rng.randbytes(size)
        signature, public = key.sign(message), key.public_key().public_bytes_raw()
        bent = bytearray(signature + public)
        bent[rng.randrange(96)] ^= 1 << rng.randrange(8)
        scalar = int.from_bytes(signature[32:], "little") + ORDER  # equal modulo the order: not to be taken
        for a, b in ((public, signature), (bytes(bent[64:]), bytes(bent[:64])),
                     (public, signature[:32] + scalar.to_bytes(32, "little"))):  # fmt: skip
            try:
                ed25519.Ed25519PublicKey.from_public_bytes(a).verify(b, message)
                expected.append("1")
            except Exception:
                expected.append("0")
            lines.append((a.hex(), b.hex(), message.hex()))
    assert expected[:3] == ["1", "0", "0"]
    assert verifier(lines) == expected
    not_reduced = (PRIME + 1).to_bytes(32, "little").hex()
    assert verifier([(not_reduced, lines[0][1], "")]) == ["0"]


def test_sha512_against_hashlib(verifier):
    data = [bytes((i * 7 + n) % 256 for i in range(n)) for n in range(300)]
    assert verifier([("sha512", "-", one.hex()) for one in data]) == [hashlib.sha512(one).hexdigest() for one in data]


@pytest.fixture
def key(tmp_path):
    assert main(["sign", "--new-key", str(tmp_path / "key")]) == 0
    return tmp_path / "key"


def test_keys_are_kept_by_their_owner_alone(key, capsys):
    assert key.stat().st_mode & 0o777 == 0o600
    digits = Path(f"{key}.pub").read_text().strip()
    assert main(["sign", "--new-key", str(key)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["sign", "--public-key", str(key)]) == 0
    assert capsys.readouterr().out.strip() == digits


def test_a_key_of_ssh(tmp_path, bundles):
    if shutil.which("ssh-keygen") is None:
        pytest.skip("there is no ssh-keygen here; install openssh-client")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True)
    key = sign.load_key(str(tmp_path / "id"))
    text = (tmp_path / "id.pub").read_text().split()[1]
    import base64

    assert sign.public_key(key) == base64.b64decode(text)[-32:].hex()
    with pytest.raises(InputError, match="no private key"):
        sign.load_key(str(tmp_path / "id.pub"))


def signed(bundle, key, runner, out):
    sign.sign_bundle(str(bundle), sign.load_key(str(key)), str(out), str(runner))
    return out


def test_a_board_that_is_told_a_key_runs_nothing_else(tmp_path, bundles, host_programs, key):
    runner, agent = host_programs
    board = DirectBoard(tmp_path / "board", agent)
    folder = tmp_path / "board"
    plain = parcel(bundles("gru"), tmp_path / "plain", runner)
    good = parcel(signed(bundles("gru"), key, runner, tmp_path / "good.rnl"), tmp_path / "a", runner)
    keys = Path(f"{key}.pub").read_bytes()
    with pytest.raises(InputError, match="runs only what its key signed, and the bundle is not"):
        pushed(board, plain, keys)
    assert current(folder) is None and not list((folder / "versions").iterdir())
    with pytest.raises(InputError, match="told a key before"):
        pushed(board, good, keys)
    first = pushed(board, good)
    assert current(folder) == first.id
    # The same bundle with another program, and with another's signature.
    other = tmp_path / "other-run"
    other.write_bytes(runner.read_bytes() + b"\0")
    with pytest.raises(InputError, match="the program runnel-run is not"):
        pushed(board, parcel(tmp_path / "good.rnl", tmp_path / "b", other))
    main(["sign", "--new-key", str(tmp_path / "thief")])
    stolen = signed(bundles("strided"), tmp_path / "thief", runner, tmp_path / "stolen.rnl")
    with pytest.raises(InputError, match="the bundle is not"):
        pushed(board, parcel(stolen, tmp_path / "c", runner))
    assert current(folder) == first.id
    # runnel-run itself, without the agent.
    program = folder / "current" / "runnel-run"
    for path, code in ((folder / "current" / "model.rnl", 0), (bundles("gru"), 2), (stolen, 2)):
        done = subprocess.run([program, "verify", path], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
    assert "signed by another or altered" in done.stderr
    # A file of keys without a key trusts nobody.
    (folder / "trusted.pub").write_text("# nobody\n")
    done = subprocess.run([program, "verify", folder / "current" / "model.rnl"], capture_output=True, check=False)
    assert done.returncode == 2


def test_signing_again_and_by_several(tmp_path, bundles, host_programs, key):
    main(["sign", "--new-key", str(tmp_path / "second")])
    out = tmp_path / "m.rnl"
    signed(bundles("gru"), key, host_programs[0], out)
    signed(out, tmp_path / "second", host_programs[0], out)
    signed(out, key, host_programs[0], out)
    lines = Bundle(out).signatures.decode().splitlines()
    assert len(lines) == 6 and len(set(lines)) == 6  # whole, board's form and program, by each
    by = [Path(f"{name}.pub").read_text().strip() for name in (tmp_path / "second", key)]
    assert [line.split()[2] for line in lines] == [by[0]] * 3 + [by[1]] * 3
    assert main(["verify", str(out)]) == 0
