"""Ed25519 signatures (RFC 8032) of bundles and of the program that runs them; runtime/sign/trust.h says of what."""

from __future__ import annotations

import getpass
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runnel.compiler.bundle import manifest_text, write_bundle
from runnel.compiler.bundle.write import COMPUTED_KEYS
from runnel.errors import InputError
from runnel.runtime.bundle import Bundle
from runnel.tools.deploy import programs
from runnel.tools.deploy.version import board_form

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MOST_KEY = 1 << 16


def _library() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise InputError("signing needs the package cryptography; pip install 'runnel[deploy]'.") from None
    return serialization, ed25519


def new_key(path: str) -> str:
    """Writes a private key that only its owner may read, and beside it its public half, which is given.

    Raises InputError.
    """
    serialization, ed25519 = _library()
    key = ed25519.Ed25519PrivateKey.generate()
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    digits = public_key(key)
    try:
        for name, data, mode in ((path, text, 0o600), (f"{path}.pub", f"{digits}\n".encode(), 0o644)):
            with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
    except FileExistsError as error:
        raise InputError(f"'{error.filename}' is there already; name another file, a key is not overwritten.") from None
    except OSError as error:
        raise InputError(f"'{error.filename}' cannot be written: {error.strerror}.") from None
    return digits


def load_key(path: str) -> Ed25519PrivateKey:
    """A private key in a PEM file or as ssh-keygen -t ed25519 writes it; a password is asked for, and kept nowhere.

    Raises InputError.
    """
    serialization, ed25519 = _library()
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_KEY)
    except OSError as error:
        raise InputError(f"the key '{path}' cannot be read: {error.strerror}.") from None
    ssh = b"BEGIN OPENSSH PRIVATE KEY" in data
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    password: bytes | None = None
    for _ in range(2):
        try:
            key = load(data, password)
        except TypeError:
            password = getpass.getpass(f"password of {path}: ").encode()
            continue
        except Exception as error:
            raise InputError(f"'{path}' is no private key that can be read ({error}).") from None
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise InputError(f"'{path}' is no ed25519 key; runnel sign --new-key FILE makes one.")
        return key
    raise InputError(f"'{path}' needs a password.")


def public_key(key: Ed25519PrivateKey) -> str:
    """The public half, as a board is told it: 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def sign_bundle(path: str, key: Ed25519PrivateKey, out: str | None = None, runner: str | None = None) -> list[str]:
    """Signs a bundle, the form of it that boards get, and the program for it; the roles that were signed.

    out: where to write; the bundle itself without it. runner: the program, in place of the one that is built.
    Signatures by other keys that still hold stay. Raises InputError, BundleError.
    """
    bundle = Bundle(path)
    bundle.verify()
    entries = {name: bundle.view(name).data for name in bundle.names}
    manifest = {name: value for name, value in bundle.manifest.items() if name not in COMPUTED_KEYS}
    whole = manifest_text(manifest, entries)
    what = {("bundle", whole): None}
    if "native" in manifest["backends"]:
        what[("bundle", manifest_text(*board_form(bundle)))] = None
        program = Path(runner) if runner else programs.runner(manifest["target"]["arch"])
        try:
            what[("program", hashlib.sha256(program.read_bytes()).digest())] = None
        except OSError as error:
            raise InputError(f"'{program}' cannot be read: {error.strerror}; name a runnel-run.") from None
    mine = public_key(key)
    lines = [line for line in bundle.signatures.decode("ascii", "replace").splitlines() if line.split()[2:3] != [mine]]
    if whole != bundle.manifest_text:
        lines = []  # they were made for other bytes
    for role, data in what:
        signature = key.sign(f"runnel {role} 1\n".encode() + data).hex()
        lines.append(f"ed25519 {role} {mine} {signature}")
    write_bundle(out or path, manifest, entries, "".join(f"{line}\n" for line in lines).encode())
    return [role for role, _ in what]
