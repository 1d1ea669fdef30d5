"""Codes of int8 that are kept as uint8 between sums of codes, where the processor likes them so."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "streaming"))
import pytest
from quantised_nets import QuantisedNet, qstack

from runnel.compiler.codegen import KernelModule, Target
from runnel.compiler.graph.model import load
from runnel.compiler.lowering.lower import lower
from runnel.compiler.lowering.plan import Planner
from runnel.compiler.streaming.analysis import analyse

VNNI = Target.of("x86_64-linux-gnu", "x86-64-v4", ("+avx512vnni",))
PAIRS = Target.of("x86_64-linux-gnu", "x86-64-v3")


def planner(net: QuantisedNet, *outputs: str, target: Target = VNNI) -> Planner:
    kinds = dict.fromkeys(outputs, net.kind)
    return Planner(lower(analyse(load(net.model(*outputs, dtypes=kinds)))), 1, KernelModule(target))


def kinds(planned: Planner) -> list[str]:
    return [group.output.dtype for group in planned.groups]


def test_between_sums_codes_are_unsigned_and_their_padding_too() -> None:
    net, x = qstack(6)
    h = net.qconv(x, 6, 6, 3, pads=[2, 0])
    planned = planner(net, net.qconv(h, 6, 6, 3, pads=[2, 0]))
    assert kinds(planned) == ["uint8", "uint8", "int8"]  # the last one is the model's output
    signal = planned.groups[0].output
    zero = next(s.node.attrs["zero"] for s in planned.groups[0].steps if s.node.op == "quantize")
    assert signal.fill == zero >= 0


def test_other_processors_and_other_readers_keep_them() -> None:
    net, x = qstack(6)
    h = net.qconv(x, 6, 6, 3, pads=[2, 0])
    y = net.qconv(h, 6, 6, 3, pads=[2, 0])
    assert "uint8" not in kinds(planner(net, y, target=PAIRS))
    net, x = qstack(6)
    h = net.qconv(x, 6, 6, 3, pads=[2, 0])
    both = net.quantise(net.op("Add", net.real(h), net.real(net.qconv(h, 6, 6, 3, pads=[2, 0]))))
    assert kinds(planner(net, both))[:2] == ["uint8", "int8"]


@pytest.mark.parametrize("kind", ["uint8"])
def test_unsigned_codes_stay_as_they_are(kind: str) -> None:
    net, x = qstack(6, kind=kind)
    assert kinds(planner(net, net.qconv(x, 6, 6, 3, pads=[2, 0]))) == ["uint8", "uint8"]
