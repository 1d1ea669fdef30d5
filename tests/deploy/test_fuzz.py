"""Hostile bytes on both ends of a push: nothing crashes, hangs, or is written outside the folder."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from pathlib import Path

import pytest
from direct import parcel
from hypothesis import given, settings
from hypothesis import strategies as st

from runnel.errors import InputError
from runnel.runtime import build_board, build_core
from runnel.tools.deploy import line
from runnel.tools.deploy.agent import Agent
from runnel.tools.deploy.shell import _cut, cksum, escaped

HERE = Path(__file__).resolve().parent
CHECKED = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """checked(name, files) → a program with the agent's parts, under the sanitizers. They are compiled once."""
    folder = tmp_path_factory.mktemp("checked")
    compiler = [*build_core.find_compiler(), *CHECKED, f"-I{build_core.CORE / 'include'}"]

    def run(*words):
        done = subprocess.run([*compiler, *map(str, words)], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the compiler lacks what this test needs: {done.stderr[-300:]}")

    parts = [path for path in build_board.agent_sources() if path.name != "main.cc"]
    run("-c", *parts)

    def program(name, *files):
        run(*files, *(f"{path.stem}.o" for path in parts), "-o", folder / name)
        return folder / name

    return program


def test_a_hostile_line_and_hostile_lists(checked):
    fuzz = checked("fuzz", HERE / "fuzz_agent.cc")
    done = subprocess.run([fuzz, "6"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    arrived, broken, taken = map(int, done.stdout.split())
    assert arrived > 10_000 and taken > 100
    assert 0 <= broken <= 6


def test_hostile_messages(checked, tmp_path, bundles, host_programs):
    """One agent under the sanitizers takes thousands of them."""
    agent = checked("agent", build_board.AGENT / "main.cc")
    what = parcel(bundles("gru"), tmp_path / "room", host_programs[0])
    parts = dict(what.version.read(range(len(what.version.places))))
    rng, folder = random.Random(1), tmp_path / "board"
    folder.mkdir()
    ended = refused = 0

    def changed(data):
        out = bytearray(data)
        for _ in range(rng.randrange(3)):
            if out:
                out[rng.randrange(len(out))] = rng.randrange(256)
        return bytes(out[: rng.randrange(len(out) + 1)] if rng.random() < 0.1 else out)

    for _ in range(4):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([agent, folder], env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}, **pipes)
        stream = bytearray()
        for _ in range(300):
            index = rng.choice(list(parts))
            body = rng.choice([
                what.version.spec, index.to_bytes(4, "little") + parts[index], b"\x01", b"", b"neon avx2",
                rng.randbytes(rng.randrange(40)), b"ab" * 32 + b"\n", os.urandom(4) + parts[index][:20],
            ])  # fmt: skip
            body = body if rng.random() < 0.6 else changed(body)
            stream += len(body).to_bytes(4, "little") + rng.choice(b"HBBPPPCRTzQ"[:10]).to_bytes(1, "little") + body
        stream += rng.choice([b"", b"\xff\xff\xff\xffB", b"\x05\0\0\0Bx"])
        out, err = process.communicate(bytes(stream), timeout=120)
        assert process.returncode in (0, 1), err.decode()[-3000:]
        ended += 1
        refused += out.count(b"push again")
        assert {p.name for p in tmp_path.iterdir()} == {"room", "board"}
        assert {p.name for p in folder.iterdir()} <= {"lock", "versions", "incoming", "current", "trusted.pub"}
        (folder / "trusted.pub").unlink(missing_ok=True)
    assert ended == 4 and refused > 20


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=1200))
def test_cobs(data):
    coded = line.encode(data)
    assert b"\0" not in coded and line.decode(coded) == data
    assert len(coded) <= len(data) + len(data) // 254 + 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=700), max_size=6), st.randoms(use_true_random=False))
def test_the_laptops_end_of_a_line(noise, rng):
    one = line.Line(7)
    one.write(b"x" * 2000)
    for i, data in enumerate(noise):
        one.receive(data, i)
        frame = line.HEAD.pack(rng.randrange(1, 8), 7, rng.getrandbits(32), rng.getrandbits(32), rng.getrandbits(32))
        body = (frame + data)[: line.MOST_FRAME - 4]
        summed = body + line.crc32c_of(body).to_bytes(4, "little")
        one.receive(b"\0" + line.encode(summed) + b"\0", i)
        one.poll(i)
        assert len(one.out) < 1 << 16
        one.out.clear()


class Said:
    """A channel from which comes what it is given."""

    def __init__(self, data):
        self.data = data

    def write(self, data):
        pass

    def read(self):
        if not self.data:
            raise InputError("the board is gone")
        part, self.data = self.data[:100], self.data[100:]
        return part


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"o", b"e", b"l", b"z"]), st.binary(max_size=60)), max_size=5),
       st.binary(max_size=20))  # fmt: skip
def test_what_a_board_answers(messages, rest):
    data = b"".join(len(body).to_bytes(4, "little") + kind + body for kind, body in messages) + rest
    for ask in (Agent.describe, lambda a: a.begin(b"x"), lambda a: a.commit(True), Agent.rollback, Agent.quit,
                lambda a: a.put(iter([(0, b"x")]), lambda size: None)):  # fmt: skip
        with contextlib.suppress(InputError):
            ask(Agent(Said(data)))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
def test_a_part_as_text(data):
    lines = _cut(escaped(data))
    assert all(len(one) <= 200 for one in lines)
    shell = 'while IFS= read -r a && [ "$a" != . ]; do printf %b "${a#?}"; done'
    text = "".join(f"#{one}\n" for one in lines) + ".\n"
    if random.Random(len(data)).random() < 0.2:
        done = subprocess.run(["sh", "-c", shell + " | cksum"], input=text.encode(), capture_output=True, check=True)
        assert done.stdout.decode().strip() == cksum(data)
