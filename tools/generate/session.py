"""One text with a decoder: prompt in, tokens out, with what it cost."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runnel.errors import InputError
from runnel.runtime.cache.stream import CachedStream
from runnel.runtime.program import Program, Stream
from runnel.tools.generate.figures import Timing
from runnel.tools.generate.sampling import Sampler, Sampling
from runnel.tools.generate.tokens import Pieces, Tokenizer

MAGIC = b"RNLCTX1\n"
CHUNK = 64  # tokens of a prompt that go in together, so that others need not wait long
Logits = NDArray[np.floating[Any]]


def check_decoder(program: Program) -> int:
    """The size of a decoder's vocabulary. Raises InputError for a program that is no decoder."""
    inputs, outputs = program.timed, program.outputs
    tokens = len(inputs) == 1 and inputs[0].dtype.kind == "i" and inputs[0].shape in ((None,), (1, None))
    logits = outputs[0].dtype.kind == "f" and outputs[0].shape[:-1] in ((None,), (1, None))
    if not tokens or not logits or outputs[0].shape[-1] is None:
        ports = ", ".join(f"{p.name} {p}" for p in (*inputs, *outputs))
        raise InputError(
            f"this bundle is no decoder of text: it has {ports}; a decoder has tokens int64[1, frames] and gives "
            "logits float32[1, frames, vocabulary]."
        )
    return int(outputs[0].shape[-1])


class Session:
    """A stream of tokens with a sampler. begin: the token that goes before the first prompt, None for none."""

    def __init__(self, stream: Stream, sampling: Sampling, begin: int | None = None) -> None:
        self.stream = stream
        self.vocabulary = check_decoder(stream.program)
        self.sampler = Sampler(sampling)
        self.timing = Timing()
        self._begin = begin
        self._logits: Logits | None = None
        self._waiting: list[int] = []
        self._started = False

    def prompt(self, tokens: Sequence[int]) -> None:
        """Lets tokens wait to go in. Raises InputError for one that the model does not know."""
        for token in tokens:
            if not 0 <= token < self.vocabulary:
                raise InputError(
                    f"token {token} is unknown to this model, whose vocabulary has {self.vocabulary}; use its own "
                    "tokenizer."
                )
        if not self._started and self._begin is not None:
            self._waiting.append(self._begin)
        self._started = True
        self._waiting += tokens

    @property
    def waiting(self) -> int:
        """Tokens of prompts that have not gone in yet."""
        return len(self._waiting)

    def prefill(self, most: int = CHUNK) -> None:
        """Takes up to ``most`` waiting tokens in."""
        chunk = self._waiting[:most]
        if not chunk:
            return
        del self._waiting[:most]
        begun = time.perf_counter()
        try:
            self._logits = self._push(chunk)
        except BaseException:
            self._waiting = chunk + self._waiting
            raise
        self.timing.prefill_seconds += time.perf_counter() - begun
        self.timing.prompt_tokens += len(chunk)
        for token in chunk:
            self.sampler.saw(token)

    def next(self) -> int:
        """The next token, drawn after all waiting ones are in; it goes in with the token after it."""
        if self._logits is None and not self._waiting:
            raise InputError("the prompt is empty and the model has no token that begins a text; give a prompt.")
        while len(self._waiting) > 1 or (self._waiting and self._logits is None):
            self.prefill()
        begun = time.perf_counter()
        if self._waiting:
            token, self._waiting = self._waiting[0], []
            self._logits = self._push([token])
        assert self._logits is not None
        drawn = self.sampler.next(self._logits)
        self.timing.decode.add(time.perf_counter() - begun)
        self._waiting = [drawn]
        return drawn

    def tokens(self, most: int, endings: frozenset[int] = frozenset()) -> Iterator[int]:
        """Up to ``most`` tokens, ended early by one of ``endings``, which is given too."""
        for _ in range(most):
            token = self.next()
            yield token
            if token in endings:
                return

    def save(self) -> bytes:
        """The context: the stream's state, and the last token, which has not gone in, so that its logits can be had.

        Tokens that wait go in first.
        """
        while len(self._waiting) > 1:
            self.prefill(min(CHUNK, len(self._waiting) - 1))
        if not self._waiting and self._logits is not None:
            raise InputError(
                "the context ends with a token that is in already; save it before its logits are asked for."
            )
        return MAGIC + struct.pack(f"<I{len(self._waiting)}q", len(self._waiting), *self._waiting) + self.stream.save()

    def restore(self, context: bytes) -> None:
        """Go on from ``save``. Raises InputError for what is no context, StreamError for that of another program."""
        head = len(MAGIC) + 4
        if len(context) < head or not context.startswith(MAGIC):
            raise InputError("this is no saved context; make one with runnel generate --save-context.")
        (count,) = struct.unpack_from("<I", context, len(MAGIC))
        if count > 1 or len(context) < head + 8 * count:
            raise InputError("the saved context is damaged; make it again with runnel generate --save-context.")
        waiting = list(struct.unpack_from(f"<{count}q", context, head))
        self.stream = self.stream.program.stream(state=context[head + 8 * count :])
        self._waiting, self._logits, self._started = [], None, bool(waiting)
        if waiting:
            self.prompt(waiting)

    def _push(self, tokens: Sequence[int]) -> Logits:
        """Logits after the last of ``tokens``, (vocabulary,)."""
        port = self.stream.program.timed[0]
        x = np.asarray(tokens, port.dtype).reshape(port.sized(len(tokens)))
        y = self.stream.push(x, last=True) if isinstance(self.stream, CachedStream) else self.stream.push(x)
        if isinstance(y, dict):
            y = y[self.stream.program.outputs[0].name]
        return np.asarray(y).reshape(-1, self.vocabulary)[-1]


class Text:
    """The text of a run of tokens as it grows, cut where a stop word begins."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._pieces: Pieces = tokenizer.pieces()
        self._stops = [word for word in stops if word]
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """What can be shown now; what may be the start of a stop word is held back."""
        return self._shown(self._pieces.push(token), final=False)

    def end(self) -> str:
        """The rest."""
        return self._shown(self._pieces.end(), final=True)

    def _shown(self, new: str, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for word in self._stops if (at := text.find(word)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if final else max((_overlap(text, word) for word in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, word: str) -> int:
    """How many of the last characters of ``text`` begin ``word``."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
