"""Talk with a decoder at the terminal, or with a program in JSON lines (--json).

In JSON lines each line of input is a request {"prompt": …, "id": …, "tokens": …, and sampling}; lines of output are
{"id", "text"} as the answer grows, then {"id", "done": true, …} with figures, or {"id", "error"}. A request
{"reset": true} starts again. At the terminal /reset starts again, /undo takes back the last turn and /quit ends.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, BinaryIO

from runnel.errors import InputError
from runnel.tools.generate import options
from runnel.tools.generate.figures import Timing, figures
from runnel.tools.generate.sampling import Sampler, Sampling
from runnel.tools.generate.session import Session, Text
from runnel.tools.generate.tokens import well_formed
from runnel.tools.units import positive

TEMPLATE = "User: {}\nAssistant:"
SAMPLING = {f.name for f in fields(Sampling)}
LONGEST_LINE = 1 << 24  # bytes of one request
SURROGATES = re.compile("[\ud800-\udfff]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_arguments(parser)
    parser.add_argument("--tokens", type=positive, default=256, metavar="N", help="most tokens of an answer (256)")
    options.add_sampling(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="what goes before the first turn")
    parser.add_argument(
        "--template", default=TEMPLATE, metavar="TEXT",
        help=r"a turn, with {} where the person's words go (default: 'User: {}\nAssistant:'); \n is a new line",
    )  # fmt: skip
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="an answer ends where TEXT begins")


@dataclass
class Conversation:
    """A session that can start again."""

    decoder: options.Decoder
    sampling: Sampling
    system: str = ""
    session: Session = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.session = self.decoder.session(self.sampling)
        self.session.prompt(self.decoder.tokenizer.encode(self.system))

    def answer(self, prompt: str, tokens: int, stops: list[str]) -> Iterator[str]:
        """The answer as it grows."""
        tokenizer = self.decoder.tokenizer
        self.session.timing = Timing()
        self.session.prompt(tokenizer.encode(well_formed(prompt, "the prompt")))
        text = Text(tokenizer, stops)
        for token in self.session.tokens(tokens, tokenizer.endings):
            yield text.push(token)
            if text.stopped:
                break
        yield text.end()


def main(args: argparse.Namespace) -> int:
    if "{}" not in args.template:
        raise InputError("the template has no {} for the person's words; put one where they go.")
    decoder = options.open_decoder(args)
    talk = Conversation(decoder, options.sampling(args), args.system)
    if args.json:
        return _serve_lines(talk, args)
    return _talk(talk, args)


def _talk(talk: Conversation, args: argparse.Namespace) -> int:
    template = args.template.replace("\\n", "\n")
    stops = [*args.stop, template.partition("{}")[0]]
    saved: list[bytes] = []
    while True:
        try:
            line = input("> ")
        except EOFError:
            return 0
        if line == "/quit":
            return 0
        if line == "/reset":
            saved.clear()
            talk.reset()
            continue
        if line == "/undo":
            _undo(talk, saved)
            continue
        saved.append(talk.session.save())
        try:
            for piece in talk.answer(template.replace("{}", line), args.tokens, stops):
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:  # ends the answer, not the conversation
            pass
        print()


def _undo(talk: Conversation, saved: list[bytes]) -> None:
    if not saved:
        print("there is no turn to take back.", file=sys.stderr)
        return
    talk.session.restore(saved.pop())


def _serve_lines(talk: Conversation, args: argparse.Namespace) -> int:
    for line in _lines(sys.stdin.buffer):
        if not line.strip():
            continue
        name: Any = None
        try:
            request = _request(line)
            name = request.get("id")
            if request.get("reset"):
                talk.reset()
                _say({"id": name, "done": True})
                continue
            drawn = {key: request[key] for key in SAMPLING & request.keys()}
            talk.session.sampler = Sampler(replace(talk.sampling, **drawn))
            tokens = request.get("tokens", args.tokens)
            for piece in talk.answer(request["prompt"], tokens, [*args.stop, *request.get("stop", [])]):
                if piece:
                    _say({"id": name, "text": piece})
            _say({"id": name, "done": True, **figures(talk.session.timing)})
        except InputError as error:
            _say({"id": name, "error": " ".join(str(error).split())})
    return 0


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines; of one that is too long the beginning, with no more in memory."""
    while line := stream.readline(LONGEST_LINE + 1):
        rest = line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST_LINE + 1)
        yield line


def _request(line: bytes) -> dict[str, Any]:
    """A request, checked. Raises InputError."""
    if len(line) > LONGEST_LINE:
        raise InputError(f"a request is longer than {LONGEST_LINE} bytes; give a shorter one.")
    try:
        request = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise InputError("the request is not valid UTF-8; give text in that encoding.") from None
    except (ValueError, RecursionError):
        raise InputError("the request is not JSON; give one object a line.") from None
    if not isinstance(request, dict):
        raise InputError('the request is not an object; give {"prompt": …}.')
    known = SAMPLING | {"id", "prompt", "tokens", "stop", "reset"}
    if odd := sorted(request.keys() - known):
        raise InputError(f"the request has the unknown key '{odd[0]}'; known are {', '.join(sorted(known))}.")
    if not isinstance(request.get("prompt", "" if request.get("reset") else None), str):
        raise InputError('the request has no prompt; give "prompt": text.')
    tokens = request.get("tokens", 1)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise InputError("the request's tokens are no number; give 1 or more.")
    stops = request.get("stop", [])
    if not isinstance(stops, list) or not all(isinstance(word, str) for word in stops):
        raise InputError('the request\'s stop is no list of texts; give "stop": ["…"].')
    for key in SAMPLING & request.keys():
        value = request[key]
        whole = key in ("top_k", "last", "seed")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise InputError(f"the request's {key} is no number; give one, or leave it out.")
    return request


def _say(event: dict[str, Any]) -> None:
    text = json.dumps(event, ensure_ascii=False)
    # The name of a request may hold half of a surrogate pair, which only an escape can say.
    sys.stdout.write((text if text.isascii() or not SURROGATES.search(text) else json.dumps(event)) + "\n")
    sys.stdout.flush()
