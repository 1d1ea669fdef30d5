"""Write docs/coverage.md: which op streams, on which backend, a reason in every hole.

What is exact comes from docs/coverage.json, which the tests of streams record (``make coverage``); what is refused is
read from the code. ``python -m runnel.tools.coverage`` writes the page; ``--check`` only says whether it is stale (exit
code 1).
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from onnx import defs

from runnel import tools
from runnel.compiler.lowering import pointwise, recurrence
from runnel.compiler.lowering.lower import Lowering
from runnel.compiler.lowering.registry import LOWERERS
from runnel.compiler.streaming import analysis, symbolic
from runnel.compiler.streaming.attention.fused import FUSED
from runnel.compiler.streaming.registry import RULES, WITHOUT_RULE, missing_rule
from runnel.compiler.streaming.windows.analysis import WINDOW_RULES
from runnel.runtime.program import BACKENDS

ROOT = Path(tools.__path__[0]).resolve().parent
PAGE = ROOT / "docs" / "coverage.md"
RECORD = ROOT / "docs" / "coverage.json"
EXACT = "exact"
UNTESTED = "no test yet"
NO_KERNEL = "no kernel is written for it; the bundle runs on onnxruntime"
# What a rule emits for time itself, and the part of the lowering that makes it native.
OVER_TIME = {kind.__name__: function for kind, function in LOWERERS.items()}


@dataclass(frozen=True)
class Complaint:
    """One ``raise`` of a refusal, as the source has it; what is only known at run time is an ellipsis."""

    kind: str
    reason: str
    remedy: str = ""
    modes: str = ""


@dataclass
class Source:
    """What a function, and those of its module that it calls, raise and emit. pointwise: ops emitted; None: its own."""

    raised: list[Complaint] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    pointwise: set[str | None] = field(default_factory=set)


def text_of(node: ast.expr, names: dict[str, Any]) -> str:
    """A string expression as a person reads it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, names) for part in node.values)
    if isinstance(node, (ast.List, ast.Tuple)):
        return " or ".join(f"`{text_of(part, names)}`" for part in node.elts)
    if isinstance(node, ast.Name) and isinstance(names.get(node.id), str):
        return str(names[node.id])
    return "…"


@cache
def source(function: Callable[..., Any]) -> Source:
    """What the function does, read from its source and from the functions of its own kind that it calls."""
    found = Source()
    for called in _reached(function):
        names = vars(sys.modules[called.__module__])
        for node in ast.walk(_tree(called)):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                kind = ast.unparse(node.exc.func)
                words = [text_of(word, names) for word in node.exc.args]
                if (
                    kind in ("Refusal", "MixesTime", "NoKernel")
                    and (complaint := Complaint(kind, *words)).reason != "…"
                ):
                    found.raised.append(complaint)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "a.emit":
                found.kinds.add(ast.unparse(node.args[1]))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "a.pointwise":
                given = next((k.value for k in node.keywords if k.arg == "op"), None)
                found.pointwise.add(None if given is None else text_of(given, names))
    found.raised = list(dict.fromkeys(found.raised))
    return found


def _tree(function: Callable[..., Any]) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def _reached(function: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The function and what it calls by name, among rules and lowering."""
    seen: list[Callable[..., Any]] = []
    pending = [function]
    while pending:
        current = pending.pop(0)
        if current in seen:
            continue
        seen.append(current)
        names = dict(vars(sys.modules[current.__module__]))
        for node in ast.walk(_tree(current)):
            if isinstance(node, ast.ImportFrom):  # an import inside a function, against a circle
                module = sys.modules.get(str(node.module))
                names.update({a.name: getattr(module, a.name) for a in node.names if hasattr(module, a.name)})
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                called = names.get(node.func.id)
                if inspect.isclass(called) and called.__module__ == recurrence.__name__:
                    called = called.__init__
                if inspect.isfunction(called) and _ours(called):
                    pending.append(called)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("self._", "low._")):
                pending.append(getattr(Lowering, str(ast.unparse(node.func)).partition(".")[2]))
    yield from seen


def _ours(function: Callable[..., Any]) -> bool:
    return function.__module__.startswith(("runnel.compiler.streaming.rules", "runnel.compiler.lowering"))


# Cells --------------------------------------------------------------------------------------------------------------


@cache
def tested() -> dict[str, dict[str, dict[str, str]]]:
    """Op → mode → runner → EXACT or why not, as the tests of streams recorded it (``make coverage``)."""
    found: dict[str, dict[str, dict[str, str]]] = json.loads(RECORD.read_text("utf-8"))
    return found


def seen(op: str, mode: str) -> dict[str, str]:
    """Runner → result of an op in a mode."""
    return tested().get(op, {}).get(mode, {})


def rule_link(op: str) -> str:
    """The rule's file, as a link from the page; ops of other domains are rewritten before the walk."""
    if op not in RULES:
        return "rewritten"
    family = RULES[op].__module__.rpartition(".")[2]
    return f"[{family}](../compiler/streaming/rules/{family}.py)"


def sequence_cell(op: str) -> str:
    if any(result == EXACT for result in seen(op, "sequence").values()):
        return f"exact, {rule_link(op)}" + (" ¹" if op in RULES and source(RULES[op]).raised else "")
    raised = [c for c in source(RULES[op]).raised if c.kind in ("Refusal", "MixesTime")] if op in RULES else []
    return f"refused: {raised[0].reason}, {rule_link(op)}" if raised else UNTESTED


def window_cell(op: str) -> str:
    """Exact where a test says so; an op that no test of windows has is told apart."""
    if any(result == EXACT for result in seen(op, "window").values()):
        return "exact" + (", shared" if op in RULES and shares(op) else "")
    return "as in sequence mode" if any(r == EXACT for r in seen(op, "sequence").values()) else UNTESTED


def shares(op: str) -> bool:
    """Whether windows share frames of this op: it has a rule of its own in window mode or is frame-local."""
    return op in WINDOW_RULES or not source(RULES[op]).kinds


def modes_cell(op: str) -> str:
    """The named modes under which the op ran."""
    named = [mode for mode in tested().get(op, {}) if mode not in ("sequence", "window")]
    return ", ".join(sorted(named)) or "none"


def native_cell(op: str) -> str:
    """A kernel where a test ran one, and what the lowering refuses all the same; else why there is none."""
    results = [runners["native"] for runners in tested().get(op, {}).values() if "native" in runners]
    if EXACT in results:
        emitted = source(RULES[op]) if op in RULES else Source()
        parts = [source(OVER_TIME[kind]).raised for kind in sorted(emitted.kinds) if kind in OVER_TIME]
        handlers = [pointwise.HANDLERS.get(other or op) for other in sorted(emitted.pointwise, key=str)]
        parts += [source(handler).raised for handler in handlers if handler]
        lacks = list(dict.fromkeys(c.reason for raised in parts for c in raised if c.reason != "has no kernel"))
        return "kernel" + (f"; not where it {', or '.join(lacks)}" if lacks else "")
    if results:
        return "no: " + results[0].partition("' ")[2]
    return f"no: {NO_KERNEL}" if op not in pointwise.HANDLERS else UNTESTED


def unruled_native_cell(op: str) -> str:
    """An op without a rule runs on whole windows only."""
    handler = pointwise.HANDLERS.get(op)
    if handler is None:
        return f"no: {NO_KERNEL}"
    lacks = ", or ".join(c.reason for c in source(handler).raised)
    return "kernel, on whole windows" + (f"; not where it {lacks}" if lacks else "")


def schemas() -> list[str]:
    """Every op of the standard domain that is not deprecated, at its newest version."""
    return sorted({s.name for s in defs.get_all_schemas() if s.domain == "" and not s.deprecated} - {"Constant"})


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# The page -----------------------------------------------------------------------------------------------------------


def refused_rows() -> list[list[str]]:
    """One row for each refusal of each rule."""
    rows = []
    families: dict[Callable[..., Any], list[str]] = {}
    for op in sorted(RULES):
        families.setdefault(RULES[op], []).append(op)
    for function, ops in families.items():
        names = ", ".join(ops) if len(ops) <= 4 else f"{', '.join(ops[:3])} and {len(ops) - 3} like them"
        for c in source(function).raised:
            rows.append([names, c.reason, c.remedy, c.modes])
    return rows


def common_rows() -> list[list[str]]:
    """Refusals that any op may meet: those of the walk and of arithmetic on lengths."""
    rows = []
    for module in (analysis, symbolic):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Refusal":
                reason, remedy = (text_of(word, vars(module)) for word in node.args[:2])
                if reason != "…":
                    rows.append([reason, remedy])
    return rows


def page() -> str:
    """The whole page."""
    known = [op for op in schemas() if op in RULES] + sorted(op for op in tested() if "." in op)
    named = [op for op in sorted(WITHOUT_RULE) if op not in RULES]
    lengths = sorted(symbolic.SYMBOLIC_OPS - set(RULES))
    rest = [op for op in schemas() if op not in RULES and op not in WITHOUT_RULE and op not in lengths]
    plain = missing_rule("")
    head = ["op", "sequence mode", "window mode", "named modes", *BACKENDS[::-1]]
    rows = [[op, sequence_cell(op), window_cell(op), modes_cell(op), "yes", native_cell(op)] for op in known]
    unruled = [
        [op, f"refused: {missing_rule(op).reason}; {missing_rule(op).remedy}", "on whole windows", "none", "yes",
         unruled_native_cell(op)]
        for op in named
    ]  # fmt: skip
    spare = [f"{op} ({unruled_native_cell(op)})" for op in rest if op in pointwise.HANDLERS]
    return f"""# Which ops stream

Made by `make coverage`: what is exact is what the tests of streams compared with the offline model in a full run, what
is refused is read from the rules and the lowering; a test fails when a claim is not seen again. {len(known)} ops have a
rule. An op that does not depend on the streamed input is folded into a constant and needs none.

*Exact*: pushed in any chunks and flushed, the op gives what it gives on the whole recording; in window mode, on every
window. *Shared*: windows share its frames, and only what a window's edges touch is computed again. *On whole windows*:
run on each window as it is, so that nothing is saved there. ¹: some uses are refused, see below.

## Ops with a rule

{table(head, rows)}

## Ops without a rule

In sequence mode each is refused with its reason. There is no default rule, because an op that keeps the time axis may
still mix frames.

{table(head, unruled)}

In sequence mode these are first taken apart into ops with rules, and stream as those do; the refusals above are of
what cannot be: {", ".join(f"{op} ({domain})" if domain else op for domain, op in sorted(FUSED))}.

Arithmetic on the model's own lengths ({", ".join(lengths)}) is carried out by the compiler and leaves no op behind.

All others are refused with "{plain.reason}" and the remedy "{plain.remedy}". In window mode they run on whole
windows, without a kernel but for {", ".join(spare) or "none of them"}:
{", ".join(rest)}.

Other ops of other domains than the standard one are refused, unless the model defines them as functions, which are
inlined.

## Uses that a rule refuses

All of this is about sequence mode: in window mode such an op runs on whole windows. An ellipsis stands for what the
message takes from the model.

{table(["op", "refused because it", "remedy", "named mode that would run it"], refused_rows())}

Window mode refuses what gives other values each time, and what has an output whose size depends on the data.

Any op may be refused for one of these:

{table(["reason", "remedy"], common_rows())}

## What the native backend adds

A model whose every node has a kernel gets a plan and kernels. With one node that has none, the whole bundle runs on
onnxruntime; `runnel inspect`, `runnel compile` and the manifest's `native_refusal` give the reason. Beside the tables
above, element types other than those of [kernels.md](kernels.md) and readers that fall behind without bound have no
native form.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runnel.tools.coverage", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is stale")
    args = parser.parse_args(argv)
    text = page()
    if not args.check:
        PAGE.write_text(text, "utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text("utf-8") == text:
        return 0
    print(f"{PAGE.relative_to(ROOT)} is stale; run: python -m runnel.tools.coverage", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
