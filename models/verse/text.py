"""The text: the King James Bible as Debian's package bible-kjv prints it, and its tokens.

    bible -f gen1:1-rev22:21 > build/verse/kjv.txt

Two books are held out: Isaiah and the Acts of the Apostles.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .constants import BEGIN, HELD_OUT, VOCABULARY

LINE = re.compile(r"^([0-9]?[A-Za-z]+)([0-9]+):[0-9]+ (.*)$")


def read_chapters(path: Path) -> dict[str, list[str]]:
    """Book -> its chapters, each the chapter's verses joined by spaces."""
    verses: dict[tuple[str, str], list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="strict").splitlines(), 1):
        if not line.strip():
            continue
        match = LINE.match(line)
        if match is None:
            raise ValueError(f"{path}: line {number} is no verse such as 'Ge1:1 In the beginning'")
        verses.setdefault((match[1], match[2]), []).append(match[3].strip())
    books: dict[str, list[str]] = {}
    for (book, _), lines in verses.items():
        books.setdefault(book, []).append(" ".join(lines))
    return books


def split(path: Path) -> tuple[str, dict[str, str]]:
    """(text to train on, held-out books by name); chapters are paragraphs."""
    books = read_chapters(path)
    held = {book: "\n\n".join(books.pop(book)) + "\n" for book in HELD_OUT}
    return "\n\n".join(chapter for chapters in books.values() for chapter in chapters) + "\n", held


def train_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE of VOCABULARY tokens; token 0 begins a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BEGIN], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> NDArray[np.int64]:
    """Tokens of ``text``, (tokens,) int64, without the one that begins it."""
    return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
