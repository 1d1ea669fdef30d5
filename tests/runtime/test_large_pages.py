"""Memory that storage reads into: large pages where all of it is used, usual ones elsewhere, and none that is not
counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import runnel
from runnel.runtime.bundle import Bundle
from runnel.tools.decoding import limit

LARGE = 2 << 20
LAYERS, WIDTH, WIDE = 12, 768, 1408
PAGES = Path("/sys/kernel/mm/transparent_hugepage")
has_large_pages = pytest.mark.skipif(
    not (PAGES / "enabled").exists()
    or "[never]" in (PAGES / "enabled").read_text()
    or int((PAGES / "hpage_pmd_size").read_text()) != LARGE,
    reason="the kernel gives no transparent pages of 2 MiB",
)


def products(path: Path, width: int) -> Path:
    """A bundle of square products."""
    rng = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for i in range(LAYERS):
        weight = rng.standard_normal((width, width)).astype(np.float32) / width**0.5
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        out = "y" if i == LAYERS - 1 else f"h{i}"
        nodes.append(helper.make_node("MatMul", [name, f"w{i}"], [out]))
        name = out
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "T", width]) for n in "xy"]
    graph = helper.make_graph(nodes, "wide", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    runnel.compile(model.SerializeToString(), path, backend="native", hop=1)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 28 MB."""
    return products(tmp_path_factory.mktemp("large") / "m.rnl", WIDTH)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 95 MB: what is pinned of it may lie in large pages as well."""
    return products(tmp_path_factory.mktemp("large") / "m.rnl", WIDE)


@dataclass(frozen=True)
class Area:
    """Of this process's addresses. resident: bytes."""

    begin: int
    size: int
    resident: int
    flags: tuple[str, ...]


def areas() -> Iterator[Area]:
    begin = size = resident = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin = int(found[1], 16)
            size = int(found[2], 16) - begin
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) << 10
        elif line.startswith("VmFlags:"):
            yield Area(begin, size, resident, tuple(line.split()[1:]))


def play(program: runnel.Program) -> bytes:
    x = np.linspace(-1, 1, 3 * WIDTH, dtype=np.float32).reshape(1, 3, WIDTH)
    stream = program.stream()
    return b"".join(stream.push(x[:, i : i + 1]).tobytes() for i in range(3))


@has_large_pages
def test_buffers_lie_in_large_pages_and_what_is_reserved_does_not(bundle: Path) -> None:
    before = {a.begin for a in areas()}
    program = runnel.load(bundle, ram="18M")
    expected = play(runnel.load(bundle))
    assert play(program) == expected
    facts = program.paging
    assert facts.streamed > 0
    assert facts.buffers % LARGE == 0
    new = [a for a in areas() if a.begin not in before]
    assert [a.size for a in new if "hg" in a.flags and a.size == facts.buffers]
    usual = [a for a in new if "nh" in a.flags]
    assert sum(a.size for a in usual) > facts.weights - facts.buffers
    assert facts.pinned <= sum(a.resident for a in usual) <= facts.pinned + (1 << 18)


def test_what_fits_in_no_large_page_counts_as_it_is(bundle: Path) -> None:
    """Buffers are no part of a large page more than the budget has."""
    least = runnel.load(bundle, ram="1G").paging.least
    for ram in range(least, least + 8 * LARGE, 300_000):
        facts = runnel.load(bundle, ram=ram).paging
        assert facts.peak <= facts.ram
        assert facts.pinned + facts.streamed + facts.tables == facts.weights


def test_a_program_takes_memory_for_the_instructions_that_it_has(bundle: Path) -> None:
    """Not for as many as its code could hold."""
    held = Bundle(bundle)
    plan, kernels = (sum(len(held.read(n)) for n in held.names if n.startswith(w)) for w in ("plan", "kernels/"))
    segment = max(s["bytes"] for s in held.manifest["weights"]["segments"])
    program = runnel.load(bundle, ram="1G")
    assert program.paging.least <= 2 * segment + kernels + program.state_bytes + 4 * plan + (64 << 10)


def test_buffers_for_loading_take_nothing_from_tables(tmp_path: Path) -> None:
    """A program with a vocabulary is all in memory where the budget has room for all of it, and a little more."""
    rng = np.random.default_rng(1)
    weights = {"table": rng.standard_normal((8192, 256)), "w": rng.standard_normal((256, 256))}
    constants = [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()]
    nodes = [helper.make_node("Gather", ["table", "x"], ["rows"]), helper.make_node("MatMul", ["rows", "w"], ["y"])]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.INT64, [1, "T"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "T", 256]),
    ]
    graph = helper.make_graph(nodes, "words", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    runnel.compile(model.SerializeToString(), tmp_path / "words.rnl", backend="native", hop=1)
    whole = runnel.load(tmp_path / "words.rnl")
    most = runnel.load(tmp_path / "words.rnl", ram="1G").paging.peak
    x = rng.integers(0, 8192, (1, 40))
    for ram in (1 << 30, most, most + 1000):
        program = runnel.load(tmp_path / "words.rnl", ram=ram)
        assert program.paging.mode == "all in RAM"
        assert program.paging.peak <= ram
        streams = [p.stream() for p in (program, whole)]
        for i in range(40):
            parts = [s.push(x[:, i : i + 1]).tobytes() for s in streams]
            assert parts[0] == parts[1]


SHRINK = """
import json, sys
from pathlib import Path
import numpy as np
import runnel
from runnel.tools.decoding import limit

group = limit.at(Path(sys.argv[2]))
group.enter()
x = np.ones((1, 1, int(sys.argv[3])), np.float32)
program = runnel.load(sys.argv[1], ram="1G")
stream = program.stream()
stream.push(x)
elsewhere = group.used - program.paging.peak
rows = []
for ram in sys.argv[4:]:
    program.set_weight_budget(int(ram))
    given = group.used
    stream.push(x)
    rows.append((given - elsewhere, group.used - elsewhere, program.paging.peak))
print(json.dumps(rows))
"""


@pytest.mark.parametrize(("name", "parts"), [("bundle", (7, 5, 8, 4, 2, 1)), ("wide", (30, 24, 28, 23, 25, 12, 2))])
def test_memory_that_is_given_back_is_no_longer_charged(
    name: str, parts: tuple[int, ...], request: pytest.FixtureRequest, group: limit.Group
) -> None:
    """Also where a large page goes in part."""
    path = request.getfixturevalue(name)
    least = runnel.load(path, ram="1G").paging.least
    budgets = [least + part * 3_000_000 for part in parts]
    words = [sys.executable, "-c", SHRINK, path, group.folder, WIDE if name == "wide" else WIDTH, *budgets]
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    for given, used, peak in rows:
        assert max(given, used) <= peak + (1 << 20), rows  # the kernel charges some pages in advance


@has_large_pages
def test_what_is_pinned_of_many_weights_lies_in_large_pages(wide: Path) -> None:
    whole = runnel.load(wide)
    x = np.linspace(-1, 1, WIDE, dtype=np.float32).reshape(1, 1, WIDE)
    expected = [whole.stream().push(x).tobytes()]
    before = {a.begin for a in areas()}
    program = runnel.load(wide, ram="88M")
    facts = program.paging
    assert facts.streamed > 0
    large = sum(a.size for a in areas() if "hg" in a.flags and a.begin not in before)
    assert 0.6 * facts.pinned < large - facts.buffers <= facts.pinned
    for ram in ("88M", "80M", "96M", "40M", "90M", "1G"):
        program.set_weight_budget(ram)
        assert [program.stream().push(x).tobytes()] == expected
        assert program.paging.peak <= program.paging.ram
