"""The options that generate, chat and serve share, and how they open a decoder."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import runnel
from runnel.errors import InputError
from runnel.runtime.bundle import Bundle
from runnel.runtime.cache.stream import CachedStream
from runnel.runtime.program import Program, Stream
from runnel.tools import runtime_options
from runnel.tools.generate.sampling import Sampling
from runnel.tools.generate.session import Session, check_decoder
from runnel.tools.generate.tokens import Tokenizer, open_tokenizer, read_tokenizer

FOLDER = "tokenizer/"


@dataclass(frozen=True)
class Decoder:
    """A program with its tokenizer."""

    program: Program
    tokenizer: Tokenizer
    kv: str | None

    def stream(self) -> Stream:
        """A stream at its start, with the cache that was asked for."""
        return self.program.stream(kv=self.kv) if self.kv is not None else self.program.stream()

    def session(self, sampling: Sampling) -> Session:
        """A session at its start."""
        return Session(self.stream(), sampling, self.tokenizer.begin)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="the bundle of a decoder, lm.rnl")
    parser.add_argument("--kv", metavar="SPEC", help="what the cache keeps, such as sink=4,window=256 (docs/kv.md)")
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json, or a vocabulary of llama2.c")
    runtime_options.add_arguments(parser)
    parser.add_argument("--backend", default="native", help="native (default) or onnxruntime")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): the likeliest token")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest that hold P")
    parser.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="drop what is less likely than P of the top"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="divide recent tokens' logits by R"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="draw the same tokens each time")


def sampling(args: argparse.Namespace) -> Sampling:
    """Raises InputError for what makes no sense."""
    return Sampling(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, min_p=args.min_p,
        repetition=args.repetition_penalty, seed=args.seed,
    )  # fmt: skip


def open_decoder(args: argparse.Namespace, streams: int = 1) -> Decoder:
    """The decoder that the arguments name, for so many texts at once. Raises InputError, BundleError."""
    program = runnel.load(args.bundle, backend=args.backend, runtime=runtime_options.runtime(args, streams))
    runtime_options.say_mode(program)
    vocabulary = check_decoder(program)
    tokenizer = open_tokenizer(args.tokenizer) if args.tokenizer else _own(args.bundle)
    if tokenizer.size > vocabulary:
        raise InputError(
            f"the tokenizer has {tokenizer.size} tokens and the model {vocabulary}; name its own with --tokenizer."
        )
    return Decoder(program, tokenizer, args.kv)


def _own(path: str) -> Tokenizer:
    bundle = Bundle(path)
    for name in bundle.names:
        if name.startswith(FOLDER):
            return read_tokenizer(bundle.read(name), f"{path}:{PurePosixPath(name).name}")
    raise InputError(f"'{path}' holds no tokenizer; name one with --tokenizer, here or when it is compiled.")


def cache_counts(stream: Stream) -> dict[str, Any]:
    """What the stream's caches say of themselves; its bytes are the state's where it has none."""
    if isinstance(stream, CachedStream):
        facts = stream.kv
        return {"bytes": facts.bytes, "cached_tokens": facts.kept, "evictions": facts.dropped}
    return {"bytes": stream.program.state_bytes}
