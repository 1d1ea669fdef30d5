"""Experts that lie in a file: the same bits for every budget and policy, counts, faults."""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

import runnel
from runnel.errors import InputError, StreamError
from runnel.runtime.bundle import Bundle
from runnel.runtime.paging import AHEAD, KEPT, UnitFacts

RNG = np.random.default_rng(8)
EXPERTS, SIZE, INNER, K, FRAMES = 8, 32, 48, 2, 41
WAYS = ["io_uring", "threads", "plain"]


def mixture(x: str, scores: str, layer: int, scale: float = 0.3) -> tuple[list[NodeProto], list[TensorProto]]:
    shapes = {f"a{layer}": (EXPERTS, INNER, SIZE), f"b{layer}": (EXPERTS, SIZE, INNER)}
    weights = [
        numpy_helper.from_array((scale * RNG.standard_normal(s)).astype(np.float32), n) for n, s in shapes.items()
    ]
    names = [x, scores, f"a{layer}", "", f"b{layer}"]
    nodes = [
        helper.make_node("MoE", names, [f"m{layer}"], domain="com.microsoft", k=K, normalize_routing_weights=1),
        helper.make_node("Add", [x, f"m{layer}"], [f"y{layer}"]),
    ]
    return nodes, weights


def model(nodes: list, weights: list[TensorProto], inputs: dict[str, list], output: str) -> bytes:
    graph = helper.make_graph(
        nodes, "experts", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, "T", SIZE])], weights,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def layers(wrong: bool = False) -> bytes:
    """Three layers with routers; wrong: each of which chooses by the opposite of what the one before chose by."""
    nodes, weights, x, seen = [], [], "x", "x"
    router = RNG.standard_normal((SIZE, EXPERTS)).astype(np.float32)
    for i in range(3):
        if wrong and i:
            nodes.append(helper.make_node("Neg", [seen], [f"n{i}"]))
            seen = f"n{i}"
        elif not wrong:
            seen = x
        nodes += [
            helper.make_node("MatMul", [seen, "router"], [f"s{i}"]),
            helper.make_node("Reshape", [f"s{i}", "rows"], [f"r{i}"]),
        ]
        more, own = mixture(x, f"r{i}", i, 0.05)
        nodes, weights, x = nodes + more, weights + own, f"y{i}"
    weights += [numpy_helper.from_array(router, "router"), numpy_helper.from_array(np.array([-1, EXPERTS]), "rows")]
    return model(nodes, weights, {"x": [1, "T", SIZE]}, x)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("units") / "m.rnl"
    runnel.compile(layers(), path, backend="native", hop=5)
    return path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer whose scores are an input."""
    nodes, weights = mixture("x", "scores", 0)
    path = tmp_path_factory.mktemp("units") / "told.rnl"
    inputs = {"x": [1, "T", SIZE], "scores": ["T", EXPERTS]}
    runnel.compile(model(nodes, weights, inputs, "y0"), path, backend="native", time_axis={"x": 1, "scores": 0})
    return path


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """Frames that are much like the one before."""
    steps = RNG.standard_normal((1, FRAMES, SIZE)).astype(np.float32)
    return np.ascontiguousarray(np.cumsum(0.4 * steps, 1))


def paged(path: Path, ram: int, **options: object) -> runnel.Program:
    return runnel.load(path, runtime=runnel.Runtime(ram=ram, **options))  # type: ignore[arg-type]


def units(program: runnel.Program) -> UnitFacts:
    assert program.paging is not None
    return program.paging.units


def play(program: runnel.Program, x: np.ndarray, chunk: int = 1) -> bytes:
    stream = program.stream()
    parts = [stream.push(x[:, i : i + chunk]) for i in range(0, x.shape[1], chunk)] + [stream.flush()]
    return np.concatenate(parts, 1).tobytes()


def least_of(path: Path, **options: object) -> int:
    facts = paged(path, 1 << 30, **options).paging
    assert facts is not None
    return facts.least


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("ahead", AHEAD)
def test_bits_depend_on_no_budget_and_no_policy(bundle: Path, x: np.ndarray, kept: str, ahead: str) -> None:
    expected, least = play(runnel.load(bundle), x), least_of(bundle, experts=kept)
    for way in WAYS:
        for share in (0.0, 0.25, 1.1):
            ram = least + int(share * units(paged(bundle, 1 << 30)).all)
            program = paged(bundle, ram, experts=kept, experts_ahead=ahead, io=way, io_threads=2 * (way == "threads"))
            for chunk in (1, 5, 13):
                assert play(program, x, chunk) == expected
            facts, count = program.paging, units(program)
            assert facts is not None
            assert facts.peak <= facts.ram
            assert count.chosen == 3 * 3 * FRAMES * K
            assert count.found + count.late <= count.chosen
            assert count.guessed_used <= count.guessed
            if kept == "none" or ahead == "off" or way == "plain":
                assert count.guessed == 0
            if kept == "none":
                assert (count.found, count.reads) == (0, count.chosen)
            elif share > 1:
                assert facts.mode == "all in RAM"
                assert count.reads <= 3 * EXPERTS


def test_the_least_budget_holds_what_one_frame_chooses(bundle: Path) -> None:
    least = least_of(bundle)
    facts = units(paged(bundle, least))
    assert facts.room == K * facts.all // (3 * EXPERTS)
    with pytest.raises(InputError, match=f"at least {least} bytes"):
        paged(bundle, least - 1)


def simulated(chosen: list[list[int]], slots: int, kept: str) -> int:
    """How many of the units are there when they are chosen."""
    there: OrderedDict[int, None] = OrderedDict()
    used, found = dict.fromkeys(range(EXPERTS), 0.0), 0
    for turn, ids in enumerate(chosen):
        for unit in ids:
            if unit in there:
                found += 1
                there.move_to_end(unit)
        for unit in ids:
            if unit not in there:
                if len(there) == slots:
                    free = [u for u in there if u not in ids]
                    there.pop(free[0] if kept == "lru" else min(free, key=lambda u: used[u]))
                there[unit] = None
        if turn % 64 == 63:
            used = {u: n / 2 for u, n in used.items()}
        for unit in ids:
            used[unit] += 1
    return found


@pytest.mark.parametrize("kept", ["lru", "lfu"])
@pytest.mark.parametrize("slots", [2, 3, 5, 8])
def test_what_is_kept_is_what_the_policy_says(told: Path, kept: str, slots: int) -> None:
    each = units(paged(told, 1 << 30)).all // EXPERTS
    program = paged(told, least_of(told) + (slots - K) * each, experts=kept)
    popular = RNG.permutation(EXPERTS)
    scores = RNG.standard_normal((150, EXPERTS)).astype(np.float32) + 1.5 * (popular < 3)
    chosen = np.argsort(-scores, 1, kind="stable")[:, :K]
    stream = program.stream()
    for row in scores:
        stream.push({"x": np.ones((1, 1, SIZE), np.float32), "scores": row[None]})
    assert units(program).room == slots * each
    assert units(program).found == simulated(chosen.tolist(), slots, kept)
    assert units(program).reads == units(program).chosen - units(program).found


def test_what_the_next_layer_chooses_is_foreseen(bundle: Path) -> None:
    ram = least_of(bundle) + units(paged(bundle, 1 << 30)).all // 4
    program = paged(bundle, ram, experts_ahead="on")
    play(program, RNG.standard_normal((1, FRAMES, SIZE)).astype(np.float32))
    assert units(program).guessed_used > 0.7 * units(program).guessed > 10
    assert 0 < units(program).read_ns <= units(program).gap_ns


def test_wrong_guesses_cost_time_alone(tmp_path: Path, x: np.ndarray) -> None:
    path = tmp_path / "wrong.rnl"
    runnel.compile(layers(wrong=True), path, backend="native")
    expected = play(runnel.load(path), x)
    program = paged(path, least_of(path) + units(paged(path, 1 << 30)).all // 4, experts_ahead="on")
    assert play(program, x) == expected
    assert units(program).guessed_used < 0.2 * units(program).guessed
    assert units(program).guessed > 10


def test_what_follows_is_learnt(told: Path, tmp_path: Path) -> None:
    """Without a router to ask, what followed before is read."""
    nodes, weights = [], []
    for i in range(2):
        more, own = mixture("x" if i == 0 else "y0", f"scores{i}", i)
        nodes, weights = nodes + more, weights + own
    path = tmp_path / "two.rnl"
    inputs = {"x": [1, "T", SIZE], **{f"scores{i}": ["T", EXPERTS] for i in range(2)}}
    runnel.compile(
        model(nodes, weights, inputs, "y1"), path, backend="native", time_axis={"x": 1, "scores0": 0, "scores1": 0}
    )
    each = units(paged(path, 1 << 30)).all // (2 * EXPERTS)
    programs = {}
    for kept in ("lru", "predict"):
        ram = least_of(path, experts=kept) + 3 * each
        programs[kept] = paged(path, ram, experts=kept, experts_ahead="on")
    first = RNG.standard_normal((200, EXPERTS)).astype(np.float32)
    for program in programs.values():
        stream = program.stream()
        for row in first:  # the second layer chooses the neighbours of what the first chose
            frame = {"x": np.ones((1, 1, SIZE), np.float32), "scores0": row[None], "scores1": np.roll(row, 1)[None]}
            stream.push(frame)
    assert units(programs["lru"]).guessed == 0
    predicted = units(programs["predict"])
    assert predicted.guessed_used > 50
    assert predicted.found + predicted.late > units(programs["lru"]).found + 50


def test_a_budget_moves_while_a_program_lives(bundle: Path, x: np.ndarray) -> None:
    expected, least = play(runnel.load(bundle), x), least_of(bundle)
    program = paged(bundle, 1 << 30)
    assert play(program, x) == expected
    read = units(program).reads
    assert play(program, x) == expected
    assert units(program).reads == read
    for more in (0, 100_000, 20_000, 1 << 20):
        program.set_weight_budget(least + more)
        assert play(program, x) == expected


def test_streams_of_a_batch(bundle: Path, x: np.ndarray) -> None:
    expected = play(runnel.load(bundle), x[:, :6], 6)
    program = paged(bundle, least_of(bundle) + 3 * runnel.load(bundle).state_bytes, streams=0)
    batch = program.batch(3)
    lanes = [batch.join() for _ in range(3)]
    made = batch.push(dict.fromkeys(lanes, x[:, :6]))
    assert all(np.asarray(made[lane]).tobytes() == expected for lane in lanes)


def test_streams_of_a_batch_read_their_experts_at_the_same_time(told: Path) -> None:
    """What each of them chooses is on its way before the first computes, and is kept until it was used."""
    lanes = EXPERTS // K
    single = runnel.load(told).state_bytes
    for room in (lanes * K, K + 1):
        for ahead in ("auto", "off"):
            each = units(paged(told, 1 << 30)).all // EXPERTS
            ram = least_of(told, streams=0) + lanes * single + (room - K) * each
            program = paged(told, ram, streams=0, experts_ahead=ahead)
            batch = program.batch(lanes)
            numbers = [batch.join() for _ in range(lanes)]
            for turn in range(3):
                frames = [frame(*((K * (lane + turn) + i) % EXPERTS for i in range(K))) for lane in range(lanes)]
                made = batch.push(dict(zip(numbers, frames, strict=True)))
                for lane, given in zip(numbers, frames, strict=True):
                    expected = runnel.load(told).stream().push(given)
                    assert np.asarray(made[lane]).tobytes() == np.asarray(expected).tobytes()
            facts = units(program)
            assert facts.chosen == 3 * EXPERTS
            if ahead == "off":
                assert facts.guessed == 0
            elif room == lanes * K:  # each is read once, and all before they are chosen
                assert (facts.guessed, facts.guessed_used, facts.reads) == (EXPERTS, EXPERTS, EXPERTS)
            else:
                assert facts.guessed_used >= facts.guessed - 1 > 0


def tables(path: Path) -> list[tuple[int, int]]:
    """Where each table of units lies in the weights, and the bytes of a unit."""
    words = np.frombuffer(Bundle(path).read("plan"), np.int64)
    code, found = words[len(words) - words[6] :], {}
    while len(code):
        if code[0] == 8:
            found[int(code[6])] = int(code[8])
        code = code[code[1] :]
    return sorted(found.items())


def altered(path: Path, folder: Path, unit: int) -> tuple[Path, int]:
    """A copy of a bundle with a bit of a unit of its first table flipped, and where the unit begins."""
    copy = folder / f"altered{unit}.rnl"
    shutil.copy(path, copy)
    table, each = tables(path)[0]
    with copy.open("r+b") as file:
        file.seek(Bundle(path).weights_entry().offset + table + unit * each + 77)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 8]))
        file.flush()
        os.fsync(file.fileno())
    return copy, table + unit * each


def frame(*experts: int) -> dict[str, np.ndarray]:
    """A frame that chooses these."""
    scores = np.zeros((1, EXPERTS), np.float32)
    scores[0, list(experts)] = 9
    return {"x": np.ones((1, 1, SIZE), np.float32), "scores": scores}


@pytest.mark.parametrize("way", WAYS)
def test_no_altered_expert_is_used_and_the_others_are(told: Path, tmp_path: Path, way: str) -> None:
    path, offset = altered(told, tmp_path, 3)
    program = paged(path, least_of(told), io=way, io_threads=way == "threads")
    whole = runnel.load(told).stream()
    stream = program.stream()
    for experts in ((0, 1), (2, 4), (7, 5)):
        assert stream.push(frame(*experts)).tobytes() == whole.push(frame(*experts)).tobytes()
    with pytest.raises(StreamError, match=f"from byte {offset} on.*altered or damaged"):
        stream.push(frame(1, 3))
    path.write_bytes(told.read_bytes())
    stream.reset()
    assert stream.push(frame(1, 3)).tobytes() == whole.push(frame(1, 3)).tobytes()


def test_an_altered_expert_that_was_guessed_and_not_chosen_does_no_harm(bundle: Path, tmp_path: Path, x: np.ndarray):
    """All but the experts that are chosen are altered, so every wrong guess reads one of them."""
    expected = play(runnel.load(bundle), x[:, :1])
    (table, each), copy = tables(bundle)[1], tmp_path / "m.rnl"
    program = paged(bundle, least_of(bundle))
    play(program, x[:, :1])
    needed = []
    for unit in range(EXPERTS):
        shutil.copy(bundle, copy)
        with copy.open("r+b") as file:
            file.seek(Bundle(bundle).weights_entry().offset + table + unit * each + 8)
            file.write(b"damage")
        try:
            assert play(paged(copy, least_of(bundle) + 4 * each), x[:, :1]) == expected
        except StreamError:
            needed.append(unit)
    assert len(needed) == K


def test_a_file_that_is_cut_off_stops_the_stream(told: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cut.rnl"
    shutil.copy(told, copy)
    stream = paged(copy, least_of(told)).stream()
    stream.push(frame(0, 1))
    table, each = tables(told)[0]
    os.truncate(copy, Bundle(told).weights_entry().offset + table + 4 * each)
    stream.push(frame(1, 2))
    with pytest.raises(StreamError, match="ends before them"):
        stream.push(frame(1, 6))


def test_options_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="no way of keeping experts 'all'"):
        runnel.Runtime(ram=1 << 30, experts="all")
    with pytest.raises(InputError, match="experts_ahead is one of auto, off, on"):
        runnel.Runtime(ram=1 << 30, experts_ahead="sometimes")
