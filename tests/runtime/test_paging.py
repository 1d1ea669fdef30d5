"""Weights that pass through memory under a budget: equal bits, bounds, faults."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from paged_model import SMALL, TOKENS

import runnel
from runnel.errors import BundleError, InputError, StreamError
from runnel.runtime.bundle import Bundle
from runnel.runtime.paging import parse_ram

RNG = np.random.default_rng(3)
WAYS = ["io_uring", "threads", "plain"]


def play(program: runnel.Program, tokens: np.ndarray, chunk: int = 5) -> dict[str, bytes]:
    """The bits of all outputs."""
    stream = program.stream()
    parts = [stream.push(tokens[:, i : i + chunk]) for i in range(0, tokens.shape[1], chunk)] + [stream.flush()]
    axes = {p.name: p.axis for p in program.outputs}
    return {name: np.concatenate([p[name] for p in parts], axis).tobytes() for name, axis in axes.items()}


def paged(path: Path, ram: int, **options: object) -> runnel.Program:
    return runnel.load(path, runtime=runnel.Runtime(ram=ram, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 1.2])
def test_bits_do_not_depend_on_the_budget(bundle: Path, tokens: np.ndarray, least: int, way: str, share: float) -> None:
    whole = runnel.load(bundle)
    weights = sum(s["bytes"] for s in whole.manifest["weights"]["segments"])
    program = paged(bundle, least + int(share * weights), io=way, io_threads=2 if way == "threads" else 0)
    for chunk in (1, 5, 13):
        assert play(program, tokens, chunk) == play(whole, tokens, chunk)
    facts = program.paging
    assert facts is not None
    assert facts.io == way
    assert facts.peak <= facts.ram
    assert facts.pinned + facts.streamed + facts.tables == weights
    assert (facts.mode == "all in RAM") == (facts.streamed + facts.tables == 0)
    assert facts.streamed > 0 or share > 0.1
    assert facts.rows >= 3 * tokens.shape[1]


def test_more_memory_means_less_reading(bundle: Path, tokens: np.ndarray, least: int) -> None:
    read = []
    for ram in range(least, least + (1 << 19), 1 << 15):
        program = paged(bundle, ram)
        play(program, tokens)
        facts = program.paging
        assert facts is not None
        read.append((facts.streamed, facts.bytes_read))
    streamed = [s for s, _ in read]
    assert streamed == sorted(streamed, reverse=True)
    assert streamed[0] > 0 == streamed[-1]
    assert read[0][1] > 2 * read[-1][1]


def test_a_budget_below_the_least_is_refused_with_it(bundle: Path, least: int) -> None:
    paged(bundle, least)
    with pytest.raises(InputError, match=f"at least {least} bytes"):
        paged(bundle, least - 1)


def test_states_of_streams_count(bundle: Path, least: int) -> None:
    state = runnel.load(bundle).state_bytes
    paged(bundle, least + 9 * state, streams=10)
    with pytest.raises(InputError, match="too small"):
        paged(bundle, least + 9 * state - 1, streams=10)


def test_what_comes_next_is_read_before_it_is_asked_for(bundle: Path, tokens: np.ndarray, least: int) -> None:
    """The first segments of a step are on their way since the end of the step before."""
    program = paged(bundle, least + SMALL)
    stream = program.stream()
    stream.push(tokens[:, :5])
    before = program.paging
    stream.push(tokens[:, 5:10])
    after = program.paging
    assert before is not None
    assert after is not None
    assert after.dropped == before.dropped
    assert after.reads - before.reads <= after.uses - before.uses + (after.rows - before.rows) + 2


def test_layers_that_are_not_due_are_not_read(bundle: Path, tokens: np.ndarray, least: int) -> None:
    program = paged(bundle, least)
    stream = program.stream()
    for i in range(20):
        stream.push(tokens[:, i : i + 1])
    facts = program.paging
    assert facts is not None
    slow = 80 * 32 * 3 * 4  # bytes of the layer with a stride
    assert facts.bytes_read < 20 * (facts.streamed + facts.rows * 4096) - 6 * slow


def test_a_budget_moves_while_a_program_lives(bundle: Path, tokens: np.ndarray, least: int) -> None:
    whole = runnel.load(bundle)
    expected = play(whole, tokens)
    program = paged(bundle, 1 << 30)
    assert play(program, tokens) == expected
    read = program.paging.bytes_read
    assert play(program, tokens) == expected
    assert program.paging.bytes_read == read  # all is there
    program.set_weight_budget(least)
    assert program.paging.streamed > 0
    assert play(program, tokens) == expected
    program.set_weight_budget(1 << 30)
    assert program.paging.mode == "all in RAM"
    assert play(program, tokens) == expected
    with pytest.raises(InputError, match="too small"):
        program.set_weight_budget(least - 1)
    assert play(program, tokens) == expected
    with pytest.raises(InputError, match="in memory"):
        whole.set_weight_budget(least)


def test_streams_of_a_batch_share_one_pass(bundle: Path, least: int) -> None:
    tokens = RNG.integers(0, TOKENS, (8, 1, 6))
    single, program = paged(bundle, least), paged(bundle, least, streams=0)
    batch = program.batch(8)
    lanes = [batch.join() for _ in range(8)]
    many = batch.push({lane: tokens[i] for i, lane in enumerate(lanes)})
    alone = single.stream()
    for i, lane in enumerate(lanes):
        alone.reset()
        got = alone.push(tokens[i])
        assert {k: v.tobytes() for k, v in many[lane].items()} == {k: v.tobytes() for k, v in got.items()}
    assert program.paging.passes < single.paging.passes


def changed(path: Path, folder: Path, offset: int) -> Path:
    """A copy of a bundle with one bit of its weights flipped."""
    copy = folder / "changed.rnl"
    shutil.copy(path, copy)
    at = Bundle(path).weights_entry().offset + offset
    with copy.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
        file.flush()
        os.fsync(file.fileno())
    return copy


@pytest.mark.parametrize("way", WAYS)
def test_no_altered_weight_is_used(bundle: Path, tmp_path: Path, tokens: np.ndarray, least: int, way: str) -> None:
    segments_ = runnel.load(bundle).manifest["weights"]["segments"]
    expected = play(runnel.load(bundle), tokens)
    for number in range(0, len(segments_), 5):
        offset = segments_[number]["offset"]
        path = changed(bundle, tmp_path, offset + 100)
        try:
            program = paged(path, least, io=way, io_threads=1 if way == "threads" else 0)
            got = play(program, tokens)
        except (StreamError, InputError) as error:
            assert f"from byte {offset} on" in str(error)
            assert "altered or damaged" in str(error)
        else:  # rows of a table that no token names
            assert got == expected
            assert segments_[number]["bytes"] == 4096


def threads(way: str) -> int:
    return 2 if way == "threads" else 0


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_goes_on_once_the_file_is_whole_again(
    bundle: Path, tmp_path: Path, tokens: np.ndarray, least: int, way: str
) -> None:
    expected = play(runnel.load(bundle), tokens)
    last = runnel.load(bundle).manifest["weights"]["segments"][-2]["offset"]
    path = changed(bundle, tmp_path, last + 50)
    program = paged(path, least, io=way, io_threads=threads(way))
    with pytest.raises(StreamError, match="reset the stream"):
        play(program, tokens)
    path.write_bytes(bundle.read_bytes())
    assert play(program, tokens) == expected


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_changes_while_a_stream_lives_stops_it(
    bundle: Path, tmp_path: Path, tokens: np.ndarray, least: int, way: str
) -> None:
    copy = tmp_path / "changing.rnl"
    shutil.copy(bundle, copy)
    program = paged(copy, least, io=way, io_threads=threads(way))
    stream = program.stream()
    stream.push(tokens[:, :5])
    with copy.open("r+b") as file:
        file.seek(Bundle(bundle).weights_entry().offset)
        file.write(bytes(Bundle(bundle).weights_entry().size))
        file.flush()
        os.fsync(file.fileno())
    with pytest.raises(StreamError, match="altered or damaged"):
        for at in range(5, 37, 5):
            stream.push(tokens[:, at : at + 5])


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_cut_off_stops_the_stream(
    bundle: Path, tmp_path: Path, tokens: np.ndarray, least: int, way: str
) -> None:
    copy = tmp_path / "cut.rnl"
    shutil.copy(bundle, copy)
    program = paged(copy, least, io=way, io_threads=threads(way))
    os.truncate(copy, Bundle(bundle).weights_entry().offset + SMALL)
    with pytest.raises(StreamError, match="ends before them"):
        play(program, tokens)


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_vanishes_is_still_read(
    bundle: Path, tmp_path: Path, tokens: np.ndarray, least: int, way: str
) -> None:
    copy = tmp_path / "gone.rnl"
    shutil.copy(bundle, copy)
    program = paged(copy, least, io=way, io_threads=threads(way))
    copy.unlink()
    assert play(program, tokens) == play(runnel.load(bundle), tokens)


def test_file_systems_without_direct_reads(bundle: Path, tokens: np.ndarray, least: int) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("there is no /dev/shm to write to")
    copy = memory / f"runnel-{os.getpid()}.rnl"
    shutil.copy(bundle, copy)
    try:
        for way in ("auto", "plain"):
            assert play(paged(copy, least, io=way), tokens) == play(runnel.load(bundle), tokens)
    finally:
        copy.unlink()


def test_nothing_is_written(bundle: Path, tokens: np.ndarray, least: int) -> None:
    def written() -> str:
        return next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("write_bytes"))

    program = paged(bundle, least)
    before = written()
    play(program, tokens)
    assert written() == before


def test_programs_in_the_file_are_not_for_other_backends(bundle: Path) -> None:
    with pytest.raises(InputError, match="native backend"):
        runnel.load(bundle, backend="onnxruntime", ram="1G")


@pytest.mark.parametrize(
    ("given", "count"), [(5000, 5000), ("256M", 256 << 20), ("1.5G", 3 << 29), ("64 KiB", 1 << 16), ("7", 7)]
)
def test_amounts_of_memory(given: int | str, count: int) -> None:
    assert parse_ram(given) == count


@pytest.mark.parametrize("given", ["", "much", "-5M", "0", 0, "1T", "nan", True])
def test_what_is_no_amount_of_memory(given: object) -> None:
    with pytest.raises(InputError, match="no amount of memory"):
        parse_ram(given)  # type: ignore[arg-type]


def test_auto_is_a_share_of_what_is_free() -> None:
    assert 1 << 20 < parse_ram("auto") < int(Path("/proc/meminfo").read_text().split()[1]) << 10


@pytest.mark.parametrize(
    "options",
    [
        {"io": "tape"}, {"io": "threads"}, {"io_threads": 99}, {"patience": 0}, {"streams": -1}, {"slow": "warn"},
        {"slow": "never", "patience": 1},
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        runnel.Runtime(ram="1M", **options)  # type: ignore[arg-type]


def test_a_bundle_without_segments_for_storage_is_refused(bundle: Path, tmp_path: Path) -> None:
    from bundles import write

    path = write(tmp_path / "hand.rnl")
    with pytest.raises((InputError, BundleError), match="segments"):
        paged(path, 1 << 30)
