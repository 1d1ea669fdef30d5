"""Texts with the shipped decoder: sessions, the scheduler, and figures."""

from __future__ import annotations

import queue
from pathlib import Path

import numpy as np
import pytest
from shipped import VERSE

import runnel
from runnel.errors import InputError, StreamError
from runnel.tools.generate.figures import Durations
from runnel.tools.generate.options import Decoder
from runnel.tools.generate.sampling import Sampling
from runnel.tools.generate.scheduler import Scheduler
from runnel.tools.generate.session import check_decoder
from runnel.tools.generate.tokens import open_tokenizer

PROMPT = "And it came to pass, when the king heard the words of the law,"


@pytest.fixture(scope="module")
def decoder(bundle: Path) -> Decoder:
    return Decoder(runnel.load(bundle), open_tokenizer(VERSE / "tokenizer.json"), "sink=4,window=60")


def text_of(decoder: Decoder, prompt: str, count: int, chunk: int = 64, seed: int = 1) -> list[int]:
    session = decoder.session(Sampling(temperature=0.8, seed=seed))
    session.prompt(decoder.tokenizer.encode(prompt))
    while session.waiting > 1:
        session.prefill(min(chunk, session.waiting - 1))
    return list(session.tokens(count))


def test_tokens_do_not_depend_on_how_the_prompt_is_cut(decoder: Decoder) -> None:
    assert text_of(decoder, PROMPT, 40, 1) == text_of(decoder, PROMPT, 40, 7) == text_of(decoder, PROMPT, 40, 64)


def test_each_token_is_the_likeliest_by_its_logits(decoder: Decoder) -> None:
    session = decoder.session(Sampling())
    tokens = [0, *decoder.tokenizer.encode(PROMPT)]
    session.prompt(tokens[1:])
    made = list(session.tokens(12))
    logits = decoder.stream().push(np.int64([tokens + made]))
    assert made == [int(np.argmax(row)) for row in logits[0, len(tokens) - 1 : -1]]


def test_a_context_goes_on_as_the_text_it_was_saved_from(decoder: Decoder) -> None:
    session = decoder.session(Sampling())
    session.prompt(decoder.tokenizer.encode(PROMPT))
    saved = session.save()
    other = decoder.session(Sampling())
    other.restore(saved)
    assert list(session.tokens(30)) == list(other.tokens(30))
    assert other.timing.prompt_tokens == 1


@pytest.mark.parametrize("damage", [b"", b"RNLCTX1\n", b"other bytes entirely", b"RNLCTX1\n\xff\xff\xff\xff"])
def test_what_is_no_context_is_refused(decoder: Decoder, damage: bytes) -> None:
    with pytest.raises(InputError, match="context"):
        decoder.session(Sampling()).restore(damage)


def test_a_context_of_another_model_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    runnel.compile(VERSE / "verse.onnx", tmp_path / "other.rnl", kv="window=32", backend="native")
    other = Decoder(runnel.load(tmp_path / "other.rnl"), decoder.tokenizer, None).session(Sampling())
    other.prompt(decoder.tokenizer.encode(PROMPT))
    with pytest.raises(StreamError, match="another program"):
        decoder.session(Sampling()).restore(other.save())


def test_tokens_out_of_the_vocabulary_and_empty_prompts_are_refused(decoder: Decoder) -> None:
    with pytest.raises(InputError, match="token 768 is unknown"):
        decoder.session(Sampling()).prompt([3, 768])
    session = decoder.session(Sampling())
    session._begin = None
    with pytest.raises(InputError, match="prompt is empty"):
        session.next()


def test_what_is_no_decoder_is_refused(tmp_path: Path) -> None:
    runnel.compile(VERSE.parent / "denoiser" / "denoiser.onnx", tmp_path / "d.rnl", backend="onnxruntime")
    with pytest.raises(InputError, match="no decoder of text"):
        check_decoder(runnel.load(tmp_path / "d.rnl", backend="onnxruntime"))


def test_texts_made_together_are_those_made_alone(decoder: Decoder) -> None:
    scheduler = Scheduler(decoder, most=3)
    said: queue.Queue[tuple[int, str, str | None]] = queue.Queue()
    prompts = [PROMPT, "In the beginning", PROMPT * 4, "Thus saith the LORD", "And"]
    try:
        for i, prompt in enumerate(prompts):
            sampling = Sampling(temperature=0.8, seed=i)
            scheduler.submit(prompt, 20, sampling, [], lambda text, why, i=i: said.put((i, text, why)))
        texts, left = [""] * len(prompts), len(prompts)
        while left:
            i, text, why = said.get(timeout=60)
            texts[i] += text
            left -= why is not None
            assert why in (None, "length")
    finally:
        scheduler.close()
    for i, prompt in enumerate(prompts):
        assert texts[i] == decoder.tokenizer.decode(text_of(decoder, prompt, 20, seed=i))


def test_a_long_prompt_does_not_stall_others(decoder: Decoder) -> None:
    """While a prompt of many chunks goes in, the other text gets a token a turn."""
    scheduler = Scheduler(decoder, most=2)
    scheduler.close()  # its thread ends: the turns are ours
    scheduler._closed = False
    events: list[str] = []
    jobs = [
        scheduler.submit(PROMPT * 40, 1, Sampling(), [], lambda text, why: events.append("long")),
        scheduler.submit("And", 30, Sampling(), [], lambda text, why: events.append("short")),
    ]
    scheduler._jobs = jobs
    turns = 0
    while "long" not in events:
        scheduler._turn()
        turns += 1
    assert turns > 10
    assert len(events) - 1 >= turns - 3


def test_durations_keep_their_percentiles_in_fixed_memory() -> None:
    rng = np.random.default_rng(0)
    seconds = np.exp(rng.normal(-8, 2, 20_000))
    durations = Durations()
    for s in seconds:
        durations.add(s)
    for percent in (50, 99):
        assert durations.percentile(percent) == pytest.approx(np.percentile(seconds, percent), rel=0.02)
    assert durations.total == pytest.approx(seconds.sum())
    assert Durations().percentile(50) == 0
