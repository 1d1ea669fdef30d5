"""Go on with a text, token by token, in a cache of a size that does not grow."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from runnel.errors import InputError
from runnel.files import replacing
from runnel.tools import runtime_options, terminal
from runnel.tools.generate import options
from runnel.tools.generate.figures import figures, lines, resident_bytes
from runnel.tools.generate.session import Text
from runnel.tools.generate.tokens import well_formed
from runnel.tools.units import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser)
    parser.add_argument("prompt", nargs="?", default="", help="how the text begins; - reads it from standard input")
    parser.add_argument("--tokens", type=positive, default=256, metavar="N", help="the most tokens (default: 256)")
    options.add_sampling(parser)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end where TEXT would begin")
    parser.add_argument("--ignore-end", action="store_true", help="go on after the token that ends a text")
    parser.add_argument("--context", metavar="FILE", help="go on after a context that --save-context made")
    parser.add_argument(
        "--save-context", metavar="FILE", help="take the prompt in and save the cache, so that none need do it again"
    )
    parser.add_argument("--stats", action="store_true", help="say what it took")


def main(args: argparse.Namespace) -> int:
    prompt = well_formed(_prompt(args.prompt), "the prompt")
    sampling = options.sampling(args)
    decoder = options.open_decoder(args)
    session = decoder.session(sampling)
    if args.context:
        session.restore(_context(args.context))
    session.prompt(decoder.tokenizer.encode(prompt))
    if args.save_context:
        with replacing(args.save_context) as file:
            file.write(session.save())
        return 0
    while session.waiting > 1:
        session.prefill()
    before = {"kv_bytes_start": options.cache_counts(session.stream)["bytes"], "rss_bytes_start": resident_bytes()}
    text, shown = Text(decoder.tokenizer, args.stop), bytearray(prompt, "utf-8")
    endings = frozenset() if args.ignore_end else decoder.tokenizer.endings
    _show(prompt, args.json)
    try:
        for token in session.tokens(args.tokens, endings):
            piece = text.push(token)
            shown += piece.encode("utf-8")
            _show(piece, args.json)
            if text.stopped:
                break
    finally:  # a limit of the model ends the text too
        piece = text.end()
        shown += piece.encode("utf-8")
        _show(piece + "\n", args.json)
    counts = options.cache_counts(session.stream)
    found: dict[str, Any] = {
        **figures(session.timing), **before, "kv_bytes_end": counts.pop("bytes"), "rss_bytes_end": resident_bytes(),
        **counts,
    }  # fmt: skip
    spent = session.timing.prefill_seconds + session.timing.decode.total
    found |= runtime_options.figures(decoder.program, spent)
    if args.json:
        print(json.dumps({**found, "text": shown.decode("utf-8")}, indent=1))
    elif args.stats:
        print(lines(found), file=sys.stderr)
        if more := runtime_options.lines(decoder.program, spent):
            print(terminal.pairs(more), file=sys.stderr)
    return 0


def _prompt(given: str) -> str:
    if given != "-":
        return given
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("standard input is not valid UTF-8; give text in that encoding.") from None


def _context(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"the context '{path}' cannot be read: {error.strerror}; make one with --save-context."
        ) from None


def _show(text: str, as_json: bool) -> None:
    if not as_json:
        sys.stdout.write(text)
        sys.stdout.flush()
