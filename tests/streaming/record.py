"""What the oracle has seen: which op streamed in which mode on which runner. docs/coverage.md is made from it.

``RUNNEL_COVERAGE=FILE`` writes it at the end of a run. Random graphs and models from elsewhere do not count, because
their ops differ from run to run and from machine to machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.modes import parse_modes
from runnel.compiler.streaming.unruled import reads

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = ROOT / "docs" / "coverage.json"
EXACT = "exact"
OLD_ONNXRUNTIME = tuple(int(v) for v in onnxruntime.__version__.split(".")[:2]) < (1, 31)
"""Onnxruntime 1.23, the last for Python 3.10: some tests are skipped there."""
NOT_COUNTED = ("test_random_graphs", "test_zoo", "test_probe")

Seen = dict[str, dict[str, dict[str, str]]]
SEEN: Seen = {}
"""Op → mode ("sequence", "window", "window reuse", "norm=running" …) → runner → EXACT or why there is no form."""


def ops_over_time(model: bytes, fixed: Mapping[str, Any] | None = None) -> set[str]:
    """The ops of a model that depend on its inputs by more than their shape."""
    graph = load(model)
    tainted = {p.name for p in graph.inputs if p.name not in (fixed or {})}
    found = set()
    for node in graph.nodes:
        if node.op in ("Shape", "Size") or not tainted.intersection(reads(node)):
            continue
        tainted.update(o for o in node.outputs if o)
        found.add(node.op if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op}")
    return found


def modes_of(options: Mapping[str, Any]) -> list[str]:
    """The modes that compile options ask for, as the page calls them."""
    named = options.get("modes") or {}
    given = options.get("mode", "exact")
    if isinstance(given, Mapping):
        named = {**named, **given}
    else:
        words = [given] if isinstance(given, str) else list(given)
        named = {**named, **parse_modes([w for w in words if "=" in w])}
        if "reuse" in words:
            return ["window reuse"]
    if named:
        return [k if ":" in v else f"{k}={v}" for k, v in named.items()]
    return ["sequence" if options.get("window") is None else "window"]


def saw(model: bytes, options: Mapping[str, Any], runner: str, result: str) -> None:
    """Count a model whose stream was equal to the reference (EXACT), or that a runner has no form for."""
    if any(name in os.environ.get("PYTEST_CURRENT_TEST", "") for name in NOT_COUNTED):
        return
    for op in ops_over_time(model):
        for mode in modes_of(options):
            runners = SEEN.setdefault(op, {}).setdefault(mode, {})
            if runners.get(runner) != EXACT:
                runners[runner] = result


def claims() -> Seen:
    """What the page claims."""
    return json.loads(CLAIMS.read_text("utf-8")) if CLAIMS.exists() else {}


def merge(path: Path) -> None:
    """Add the record of another process."""
    for op, modes in json.loads(path.read_text("utf-8")).items():
        for mode, runners in modes.items():
            mine = SEEN.setdefault(op, {}).setdefault(mode, {})
            mine.update({runner: result for runner, result in runners.items() if mine.get(runner) != EXACT})


def missing(claimed: Seen) -> list[str]:
    """Claims of exactness that this run has not seen."""
    return [
        f"{op}, {mode}, {runner}"
        for op, modes in claimed.items()
        for mode, runners in modes.items()
        for runner, result in runners.items()
        if result == EXACT and SEEN.get(op, {}).get(mode, {}).get(runner) != EXACT
    ]


def write(path: Path) -> None:
    """The record as data, one op a line."""
    lines = [f"{json.dumps(op)}: {json.dumps(SEEN[op], sort_keys=True)}" for op in sorted(SEEN)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
