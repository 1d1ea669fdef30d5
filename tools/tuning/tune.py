"""Tunes a model: what ``runnel tune`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runnel import targets
from runnel.compiler.lowering.lower import lower
from runnel.compiler.lowering.plan import Planner
from runnel.compiler.lowering.signals import NoKernel
from runnel.errors import Reason, Refused
from runnel.tools.build import kernel_target, rewrite, steps_of
from runnel.tools.request import Request
from runnel.tools.tuning.bench import Session
from runnel.tools.tuning.log import Record
from runnel.tools.tuning.search import Progress, Recorder, search


def tune(
    model: Any, known: Sequence[Record], rpc: str | None, trials: int, cxx: str | None, say: Progress,
    options: Mapping[str, Any],
) -> list[Record]:  # fmt: skip
    """Measure the products of a model that ``known`` lacks. options: of ``runnel.compile``.

    Raises Refused, InputError.
    """
    request = Request(**options)
    board = targets.load(request.target)
    session = Session(board, rpc, cxx)
    graph = rewrite(model, request).graph
    recorder = Recorder(kernel_target(board))
    try:
        low = lower(graph)
        Planner(low, steps_of(graph, low, request), recorder).build()
    except NoKernel as error:
        raise Refused([Reason(graph.name, "native", str(error), "only models with kernels can be tuned")]) from None
    return search(recorder.target, recorder.groups, session, known, trials, say)
