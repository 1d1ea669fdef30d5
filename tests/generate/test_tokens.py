"""Text to tokens and back."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped import VERSE

from runnel.errors import InputError
from runnel.tools.generate.session import Text
from runnel.tools.generate.tokens import JsonTokenizer, MergeTokenizer, Tokenizer, open_tokenizer, well_formed

PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(256)), " ", "a", "b", "ab", " a", "bab", "é"]
SCORES = {"ab": -1.0, " a": -2.0, "bab": -0.5}


def vocabulary(pieces: list[str] = PIECES) -> bytes:
    """A vocabulary of llama2.c."""
    data = struct.pack("<i", max(len(p) for p in pieces))
    for piece in pieces:
        raw = piece.encode()
        data += struct.pack("<fi", SCORES.get(piece, -9.0), len(raw)) + raw
    return data


@pytest.fixture(scope="module")
def merging() -> MergeTokenizer:
    return MergeTokenizer(vocabulary(), "small")


@pytest.fixture(scope="module", params=["merging", "json"])
def tokenizer(request: pytest.FixtureRequest, merging: MergeTokenizer) -> Tokenizer:
    return merging if request.param == "merging" else open_tokenizer(VERSE / "tokenizer.json")


def slowly_merged(tokenizer: MergeTokenizer, tokens: list[int]) -> list[int]:
    """llama2.c's own loop: the best pair of all, again and again."""
    tokens, known = list(tokens), {p: t for t, p in enumerate(tokenizer._pieces)}
    while True:
        pairs = [(i, known.get(tokenizer._pieces[a] + tokenizer._pieces[b])) for i, (a, b) in
                 enumerate(zip(tokens, tokens[1:]))]  # fmt: skip
        found = [(-tokenizer._scores[t], i, t) for i, t in pairs if t is not None]
        if not found:
            return tokens
        _, i, token = min(found)
        tokens[i : i + 2] = [token]


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back(text: str) -> None:
    for tokenizer in (MergeTokenizer(vocabulary(), "small"), open_tokenizer(VERSE / "tokenizer.json")):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(alphabet="ab é", max_size=30))
@settings(max_examples=200, deadline=None)
def test_pairs_are_joined_in_order_of_their_scores(text: str) -> None:
    tokenizer = MergeTokenizer(vocabulary(), "small")
    single = [tokenizer._known.get(c.encode()) for c in " " + text] if text else []
    if None not in single:
        assert tokenizer.encode(text) == slowly_merged(tokenizer, single)  # type: ignore[arg-type]


def test_text_comes_in_whole_characters(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.pieces()
    tokens = tokenizer.encode("né €")
    shown = [pieces.push(token) for token in tokens]
    assert "".join(shown) + pieces.end() == "né €"
    assert not any("�" in text for text in shown)


def test_a_character_that_is_cut_off_is_marked(merging: MergeTokenizer) -> None:
    text = Text(merging)
    assert text.push(3 + 0xE2) == ""
    assert text.end() == "�"


def test_the_zoo_tokenizer_gives_the_tokens_of_its_model(zoo_file) -> None:
    tokenizer = open_tokenizer(zoo_file("stories260k/tok512.bin"))
    assert tokenizer.encode("Once upon a time") == [403, 407, 261, 378]
    assert tokenizer.decode([1, 403, 407, 261, 378]) == "Once upon a time"


@pytest.mark.parametrize("cut", [1, 5, 9, 40, 1000])
def test_damaged_vocabularies_are_refused(cut: int) -> None:
    with pytest.raises(InputError, match="neither a tokenizer.json nor a vocabulary"):
        MergeTokenizer(vocabulary()[:-cut] if cut < 1000 else b"\x00" * 7, "broken")


@pytest.mark.parametrize("text", [b"{", b'{"version": "1.0"}', b'{"model": 5}'])
def test_damaged_json_is_refused(text: bytes) -> None:
    with pytest.raises(InputError, match="no tokenizer.json"):
        JsonTokenizer(text, "broken")


def test_what_has_no_token_is_named() -> None:
    tokenizer = MergeTokenizer(vocabulary(["<unk>", "\n<s>\n", "\n</s>\n", " ", "a"]), "small")
    with pytest.raises(InputError, match="no token for 'ж'"):
        tokenizer.encode("a ж")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InputError, match="not valid UTF-8"):
        well_formed("a\udcff", "the prompt")


@pytest.mark.parametrize("stop", ["ab", "b\n", "xyz"])
def test_nothing_of_a_stop_word_is_shown(merging: MergeTokenizer, stop: str) -> None:
    whole = "cab ab\n ba"
    text = Text(merging, [stop])
    shown = "".join(text.push(token) for token in merging.encode(whole)) + text.end()
    assert shown == (whole[: whole.index(stop)] if stop in whole else whole)
    assert text.stopped == (stop in whole)
