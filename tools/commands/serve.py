"""Serve a decoder to programs that speak OpenAI's protocol, on this machine only unless told otherwise."""

from __future__ import annotations

import argparse

from runnel.errors import InputError
from runnel.tools.generate import options
from runnel.tools.units import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="the port to listen on (default: 8080; 0: any)")
    parser.add_argument("--streams", type=positive, default=4, metavar="N", help="texts at once (default: 4)")
    parser.add_argument("--tokens", type=positive, default=4096, metavar="N", help="the most tokens of an answer")


def main(args: argparse.Namespace) -> int:
    try:
        import uvicorn

        from runnel.tools.generate.server import application
    except ImportError as error:
        raise InputError(
            f"serve needs the package {error.name}; install it with pip install 'runnel[serve]'."
        ) from None
    if not 0 <= args.port <= 65535:
        raise InputError(f"port {args.port} is no port; give 0 to 65535.")
    decoder = options.open_decoder(args, args.streams)
    app = application(decoder, args.streams, args.tokens)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning" if args.json else "info")
    return 0
