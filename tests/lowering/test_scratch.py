"""Where values of a single step lie."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from runnel.compiler.codegen import KernelModule, Target
from runnel.compiler.graph.model import load
from runnel.compiler.lowering.lower import lower
from runnel.compiler.lowering.plan import Planner
from runnel.compiler.lowering.rings import SCRATCH
from runnel.compiler.lowering.scratch import lives, placed
from runnel.compiler.lowering.signals import Signal
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.optimise import optimise


def signals(count: int) -> list[Signal]:
    return [Signal(f"s{i}", (1,), "float32", Count.time(), Count.time()) for i in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_values_that_live_together_lie_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = signals(40)
    starts = rng.integers(0, 30, len(found))
    life = {s: (int(a), int(a + rng.integers(0, 12))) for s, a in zip(found, starts, strict=True)}
    sizes = {s: int(rng.integers(1, 5000)) for s in found}
    places, total = placed(sizes, life)
    for i, one in enumerate(found):
        assert places[one] % 64 == 0
        assert places[one] + sizes[one] <= total
        for other in found[:i]:
            together = life[one][0] <= life[other][1] and life[other][0] <= life[one][1]
            apart = places[one] + sizes[one] <= places[other] or places[other] + sizes[other] <= places[one]
            assert apart or not together
    most = max(sum(sizes[s] for s in found if life[s][0] <= t <= life[s][1]) for t in range(45))
    assert most <= total < 1.6 * most + 64 * len(found)


def planner(layers: int) -> Planner:
    """A chain of products, the first of whose values is added to the last."""
    rng, nodes, weights, x = np.random.default_rng(0), [], [], "x"
    for i in range(layers):
        weights.append(numpy_helper.from_array(rng.standard_normal((64, 64)).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [f"y{i}"], name=f"m{i}"))
        x = f"y{i}"
    nodes.append(helper.make_node("Add", [x, "y0"], ["y"], name="sum"))
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "T", 64]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], weights)
    stream = analyse(load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)))
    optimise(stream)
    made = Planner(lower(stream), 8, KernelModule(Target.host()))
    made.build()
    return made


def test_a_deeper_model_needs_no_more() -> None:
    few, many = planner(4), planner(12)
    used = [max(r.base + r.bytes for r in p.rings.values() if r.space == SCRATCH) for p in (few, many)]
    assert used[0] == used[1] < sum(r.bytes for r in few.rings.values())
    outputs = [view.signal for view, _ in many.low.outputs.values()]
    life = lives(many.groups, many.low.inputs, outputs)
    assert life[many.low.inputs[0]][0] == -1
    assert life[outputs[0]][1] == len(many.groups)
