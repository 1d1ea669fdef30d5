"""Several programs under one budget: never above it, equal bits, memory to the one that runs, by priority."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runnel
from runnel.errors import InputError
from runnel.runtime.paging import PagingFacts

QUIET = 16  # passes after which a program of the same priority counts as resting


class Player:
    """A stream that is pushed a frame at a time, and what came out."""

    def __init__(self, program: runnel.Program, tokens: np.ndarray) -> None:
        self.program, self.stream, self.tokens, self.at = program, program.stream(), tokens, 0
        self.parts: list[Any] = []

    def push(self) -> None:
        self.parts.append(self.stream.push(self.tokens[:, self.at : self.at + 1]))
        self.at += 1

    @property
    def facts(self) -> PagingFacts:
        facts: PagingFacts = self.program.paging
        return facts

    def check(self) -> None:
        facts = self.facts
        assert facts.shared_used <= facts.shared
        assert facts.least <= facts.peak <= facts.ram

    def bits(self) -> list[bytes]:
        return [part[name].tobytes() for part in self.parts for name in sorted(part)]


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 300, (1, 400))


@pytest.fixture(scope="module")
def more(bundle: Path, least: int) -> int:
    """What one program can use beyond its least."""
    return int(runnel.load(bundle, ram=1 << 30).paging.ram) - least


def expected(bundle: Path, player: Player) -> list[bytes]:
    whole = Player(runnel.load(bundle), player.tokens)
    for _ in range(player.at):
        whole.push()
    return whole.bits()


def opened(
    bundle: Path, ram: int, text: np.ndarray, *priorities: int, **options: Any
) -> tuple[runnel.Runtime, list[Player]]:
    runtime = runnel.Runtime(ram=ram, **options)
    return runtime, [Player(runtime.load(bundle, priority=p), text) for p in priorities]


def room(least: int, more: int) -> int:
    """For all of one program and the least of another."""
    return 2 * least + more


@pytest.mark.parametrize("way", ["io_uring", "threads", "plain"])
def test_programs_that_take_turns_give_the_same_bits(
    bundle: Path, least: int, more: int, text: np.ndarray, way: str
) -> None:
    _, players = opened(bundle, least + room(least, more), text, 0, 0, 1, io=way, io_threads=int(way == "threads"))
    order = np.random.default_rng(1).integers(0, 3, 240)
    order[60:120] = order[60:120] % 2  # the third one rests, then the second too
    order[120:180] = 0
    for turn in order:
        players[turn].push()
        players[turn].check()
    for player in players:
        assert player.bits() == expected(bundle, player)


def test_a_higher_priority_takes_what_it_can_use(bundle: Path, least: int, more: int, text: np.ndarray) -> None:
    _, (low, high) = opened(bundle, room(least, more), text, 1, 5)
    for _ in range(5):
        low.push()
    alone = low.facts.ram
    assert low.facts.ram + high.facts.ram <= low.facts.shared
    high.push()
    assert high.facts.ram > low.facts.ram == low.facts.least
    assert alone > low.facts.ram
    for _ in range(3 * QUIET):
        low.push()
    assert low.facts.ram == low.facts.least  # a higher one keeps its part while it rests
    low.program.set_priority(9)
    low.push()
    assert low.facts.ram > high.facts.ram == high.facts.least
    for player in (low, high):
        assert player.bits() == expected(bundle, player)


def test_of_equals_the_one_that_runs_gets_its_part_back(bundle: Path, least: int, more: int, text: np.ndarray) -> None:
    _, (first, second) = opened(bundle, room(least, more), text, 0, 0)
    for _ in range(QUIET + 2):
        first.push()
    held = first.facts
    assert held.pinned > second.facts.pinned
    for _ in range(40):  # in turns nothing moves
        second.push()
        first.push()
    assert (first.facts.ram, first.facts.pinned) == (held.ram, held.pinned)
    for _ in range(QUIET + 2):
        second.push()
    assert second.facts.pinned == held.pinned
    read = second.facts.bytes_read
    steps = 10
    for _ in range(steps):
        second.push()
    rows = steps * 4096
    assert second.facts.bytes_read - read <= steps * second.facts.streamed + rows + second.facts.buffers
    assert first.facts.ram == first.facts.least
    for player in (first, second):
        assert player.bits() == expected(bundle, player)


def test_the_least_of_all_is_named(bundle: Path, least: int, text: np.ndarray) -> None:
    runtime, (first,) = opened(bundle, 2 * least - 1, text, 0)
    with pytest.raises(InputError, match=f"at least {2 * least} bytes of memory with the programs beside it"):
        runtime.load(bundle)
    first.push()
    first.program.set_weight_budget(2 * least)
    second = Player(runtime.load(bundle), text)
    with pytest.raises(InputError, match=f"at least {2 * least} bytes"):
        second.program.set_weight_budget(2 * least - 1)
    second.push()
    assert second.bits() == expected(bundle, second)


def test_a_budget_moves_for_all(bundle: Path, least: int, more: int, text: np.ndarray) -> None:
    _, players = opened(bundle, 2 * (least + more), text, 3, 4)
    for ram in (2 * (least + more), 2 * least, room(least, more), 3 * (least + more)):
        players[0].program.set_weight_budget(ram)
        for player in players:
            player.push()
            assert player.facts.shared == ram
    assert [p.facts.mode for p in players] == ["all in RAM"] * 2
    for player in players:
        assert player.bits() == expected(bundle, player)


def test_a_program_that_ends_gives_its_memory_back(bundle: Path, least: int, more: int, text: np.ndarray) -> None:
    runtime, (first, second) = opened(bundle, room(least, more), text, 0, 7)
    second.push()
    first.push()
    assert first.facts.ram < second.facts.ram
    del second
    first.push()
    assert first.facts.shared_used == first.facts.peak > first.facts.least
    assert first.facts.mode == "all in RAM"
    again = Player(runtime.load(bundle), text)
    again.push()
    assert again.bits() == expected(bundle, again)


def test_programs_that_run_at_the_same_time(bundle: Path, least: int, more: int, text: np.ndarray) -> None:
    _, players = opened(bundle, room(least, more) + least, text, 0, 0, 2)
    failed: list[BaseException] = []

    def run(player: Player) -> None:
        try:
            for _ in range(200):
                player.push()
                player.check()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(player,)) for player in players]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for player in players:
        assert player.bits() == expected(bundle, player)


def test_a_priority_without_a_budget_is_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match="share memory"):
        runnel.load(bundle, priority=2)
    with pytest.raises(InputError, match="shares no budget"):
        runnel.load(bundle).set_priority(2)
