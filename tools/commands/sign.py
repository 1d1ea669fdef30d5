"""Sign a bundle with an ed25519 key, so that a board that was told the key runs it and nothing else."""

from __future__ import annotations

import argparse
import json

from runnel.errors import InputError
from runnel.tools.deploy import sign


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="?", help="the bundle, m.rnl")
    parser.add_argument("--key", metavar="FILE", help="the private key: PEM, or as ssh-keygen -t ed25519 writes it")
    parser.add_argument("-o", "--out", metavar="FILE", help="where to write (default: the bundle itself)")
    parser.add_argument("--runner", metavar="FILE", help="the runnel-run to sign (default: the one that push sends)")
    parser.add_argument("--new-key", metavar="FILE", help="make a private key, and its public half in FILE.pub")
    parser.add_argument("--public-key", metavar="FILE", help="print the public half of a private key")


def main(args: argparse.Namespace) -> int:
    if args.new_key or args.public_key:
        digits = sign.new_key(args.new_key) if args.new_key else sign.public_key(sign.load_key(args.public_key))
        print(json.dumps({"public_key": digits}) if args.json else digits)
        return 0
    if not args.bundle or not args.key:
        raise InputError("say what to sign and with what: runnel sign m.rnl --key FILE; --new-key FILE makes a key.")
    key = sign.load_key(args.key)
    roles = sign.sign_bundle(args.bundle, key, args.out, args.runner)
    facts = {"path": args.out or args.bundle, "signed": sorted(set(roles)), "public_key": sign.public_key(key)}
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        print(f"signed {' and '.join(facts['signed'])} of {facts['path']} as {facts['public_key']}")
    return 0
