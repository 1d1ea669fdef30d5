"""Text to tokens and back: ``tokenizer.json`` by the tokenizers library, and the vocabulary files of llama2.c."""

from __future__ import annotations

import codecs
import heapq
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from runnel.errors import InputError

ENDINGS = ("</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<eos>")
BEGINNINGS = ("<s>", "<|begin_of_text|>", "<bos>", "<|endoftext|>")
BYTE = re.compile(rb"<0x([0-9A-F]{2})>\Z")
GONE = -1  # the place of a token that was joined to the one before it
MOST_PIECES = 1 << 22
MOST_PIECE_BYTES = 1 << 16


class Pieces(ABC):
    """Turns tokens into text as they come: bytes of a character that is not whole yet wait."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that ``token`` completes."""
        return self._decoder.decode(self.piece(token))

    def end(self) -> str:
        """What is left: a character that was cut off becomes the replacement character."""
        return self._decoder.decode(b"", final=True)

    @abstractmethod
    def piece(self, token: int) -> bytes:
        """The bytes of one token after those before it."""


class Tokenizer(ABC):
    """begin: the token that begins a text, None where there is none. endings: tokens that end one."""

    size: int
    begin: int | None
    endings: frozenset[int]

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokens of ``text``, without the one that begins it. Raises InputError for what has no token."""

    @abstractmethod
    def pieces(self) -> Pieces:
        """A decoder of a new text."""

    def decode(self, tokens: Sequence[int]) -> str:
        pieces = self.pieces()
        return "".join(pieces.push(token) for token in tokens) + pieces.end()


def read_tokenizer(data: bytes, name: str) -> Tokenizer:
    """A tokenizer from a file's bytes. Raises InputError for one that is neither of the two kinds."""
    if data.lstrip()[:1] == b"{":
        return JsonTokenizer(data, name)
    return MergeTokenizer(data, name)


def open_tokenizer(path: str | Path) -> Tokenizer:
    """A tokenizer from a file. Raises InputError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"the tokenizer '{path}' cannot be read: {error.strerror}; name a file that is there."
        ) from None
    return read_tokenizer(data, str(path))


def well_formed(text: str, what: str) -> str:
    """``text`` if it is whole Unicode. Raises InputError for bytes that were not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{what} is not valid UTF-8; give text in that encoding.") from None
    return text


class JsonTokenizer(Tokenizer):
    """``tokenizer.json`` of the tokenizers library."""

    def __init__(self, data: bytes, name: str) -> None:
        try:
            import tokenizers
        except ImportError:
            raise InputError(
                f"the tokenizer '{name}' needs the package tokenizers; install it with pip install 'runnel[generate]'."
            ) from None
        try:
            self._inner = tokenizers.Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exception
            why = " ".join(str(error).split())
            raise InputError(f"'{name}' is no tokenizer.json that tokenizers reads: {why}.") from None
        self._stream = tokenizers.decoders.DecodeStream
        self.size = self._inner.get_vocab_size()
        known = self._inner.get_vocab()
        self.endings = frozenset(known[word] for word in ENDINGS if word in known)
        self.begin = next((known[word] for word in BEGINNINGS if word in known), None)
        model = getattr(self._inner.model, "unk_token", None)
        self._unknown = known.get(model) if isinstance(model, str) else None

    def encode(self, text: str) -> list[int]:
        # Unlike encode, a batch lets other threads run.
        (found,) = self._inner.encode_batch([text], add_special_tokens=False)
        ids: list[int] = found.ids
        if self._unknown is not None and self._unknown in ids:
            first, last = found.offsets[ids.index(self._unknown)]
            raise _no_token(text[first:last])
        return ids

    def pieces(self) -> Pieces:
        return _JsonPieces(self._inner, self._stream(skip_special_tokens=True))


class _JsonPieces(Pieces):
    def __init__(self, inner: object, stream: object) -> None:
        super().__init__()
        self._inner, self._stream = inner, stream

    def piece(self, token: int) -> bytes:
        text: str | None = self._stream.step(self._inner, token)  # type: ignore[attr-defined]
        return (text or "").encode("utf-8", "replace")


class MergeTokenizer(Tokenizer):
    """The vocabulary of llama2.c: pieces with scores, merged best score first, with one piece a byte for the rest.

    int32 longest piece, then for each token: float32 score, int32 bytes, the piece. Tokens 1 and 2 begin and end texts.
    """

    begin = 1
    endings = frozenset({1, 2})

    def __init__(self, data: bytes, name: str) -> None:
        wrong = InputError(f"'{name}' is neither a tokenizer.json nor a vocabulary of llama2.c; give one of the two.")
        self._pieces: list[bytes] = []
        self._scores: list[float] = []
        at = 4
        while at < len(data):
            if at + 8 > len(data) or len(self._pieces) >= MOST_PIECES:
                raise wrong
            score, size = struct.unpack_from("<fi", data, at)
            if not 0 <= size <= MOST_PIECE_BYTES or at + 8 + size > len(data) or score != score:
                raise wrong
            self._pieces.append(data[at + 8 : at + 8 + size])
            self._scores.append(score)
            at += 8 + size
        self.size = len(self._pieces)
        if self.size < 3:
            raise wrong
        self._known = {piece: token for token, piece in enumerate(self._pieces)}
        self._bytes = {int(m[1], 16): t for t, piece in enumerate(self._pieces) if (m := BYTE.match(piece))}

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = []
        for character in (" " + text) if text else "":
            raw = character.encode("utf-8")
            if raw in self._known:
                tokens.append(self._known[raw])
                continue
            if any(byte not in self._bytes for byte in raw):
                raise _no_token(character)
            tokens += [self._bytes[byte] for byte in raw]
        return self._merged(tokens)

    def _merged(self, tokens: list[int]) -> list[int]:
        """Joins neighbours, the pair with the best score first, the leftmost of equals."""
        after = [*range(1, len(tokens)), -1]
        before = list(range(-1, len(tokens) - 1))
        waiting: list[tuple[float, int, int, int, int]] = []

        def offer(left: int) -> None:
            right = after[left]
            if right < 0:
                return
            joined = self._known.get(self._pieces[tokens[left]] + self._pieces[tokens[right]])
            if joined is not None:
                heapq.heappush(waiting, (-self._scores[joined], left, tokens[left], tokens[right], joined))

        for left in range(len(tokens) - 1):
            offer(left)
        while waiting:
            _, left, first, second, joined = heapq.heappop(waiting)
            right = after[left]
            if tokens[left] != first or right < 0 or tokens[right] != second:
                continue
            tokens[left], tokens[right], after[left] = joined, GONE, after[right]
            if after[right] >= 0:
                before[after[right]] = left
            if before[left] >= 0:
                offer(before[left])
            offer(left)
        return [token for token in tokens if token != GONE]

    def pieces(self) -> Pieces:
        return _MergePieces(self._pieces, self.endings)


class _MergePieces(Pieces):
    def __init__(self, pieces: list[bytes], silent: frozenset[int]) -> None:
        super().__init__()
        self._pieces, self._silent, self._first = pieces, silent, True

    def piece(self, token: int) -> bytes:
        if token in self._silent:
            return b""
        piece = self._pieces[token]
        if (match := BYTE.match(piece)) is not None:
            piece = bytes([int(match[1], 16)])
        if self._first:  # the space in front of a text is the encoder's own
            self._first = False
            return piece[1:] if piece[:1] == b" " else piece
        return piece


def _no_token(text: str) -> InputError:
    return InputError(f"the tokenizer has no token for {text!r}; leave it out, or use the tokenizer of the model.")
